//! Instructions carried out on the host come to what the PTX ISA says of them.

use std::path::PathBuf;
use std::process::Command;

use super::translate;
use crate::emulated_card::{AS_COMPILED, compiler, including, object};
use crate::run::{read, root, run, say};

/// What runs a kernel with a warp of threads, 32 words of memory each, and prints these or the complaint.
const LAUNCH: &str = r#"
#include <cstdio>
#include "emulate.h"
extern "C" bool emulate_launch(const char* name, const emulate::Launch* launch, void* const* arguments);
int main(int, char** words) {
    alignas(128) static unsigned memory[32 * 32];
    char complaint[512] = "";
    void* at = memory;
    void* arguments[] = {&at};
    const emulate::Launch launch{{1, 1, 1}, {32, 1, 1}, 512, 0, nullptr, 0, complaint, sizeof complaint};
    if (!emulate_launch(words[1], &launch, arguments)) return std::puts(complaint), 0;
    for (unsigned word : memory) std::printf("%u ", word);
}
"#;

/// What `%r9` holds behind these in lanes 0 and 21. `%r8` is the lane, `%rd1` where its words are, 24 to 31 of them free
/// here; of `%f1` to `%f3` the first two are 1 + 2^-23 and no number.
const TRIED: [(&str, [u32; 2]); 62] = [
    // Rows of 16 bytes, a lane's number in the upper byte of an element and its column in the lower.
    (ROWS_AS_THEY_ARE, [0x0001_0000, 0x0503_0502]),
    (ROWS_TRANSPOSED, [0x0100_0000, 0x0305_0205]),
    // The square of 1 + 2^-23 is 1 + 2^-22 + 2^-46.
    ("neg.f32 %f3, %f1; fma.rn.f32 %f9, %f1, %f3, 0f00000000; mov.b32 %r9, %f9;", [0xBF80_0002; 2]),
    ("neg.f32 %f3, %f1; fma.rm.f32 %f9, %f1, %f3, 0f00000000; mov.b32 %r9, %f9;", [0xBF80_0003; 2]),
    ("fma.rm.f32 %f9, %f1, %f1, 0f00000000; mov.b32 %r9, %f9;", [0x3F80_0002; 2]),
    ("fma.rn.f32 %f9, %f1, %f1, 0fBF800002; mov.b32 %r9, %f9;", [0x2880_0000; 2]),
    ("mul.f32 %f3, %f1, %f1; sub.f32 %f9, %f3, 0f3F800002; mov.b32 %r9, %f9;", [0; 2]),
    ("cvt.sat.f32.f32 %f9, %f2; mov.b32 %r9, %f9;", [0; 2]),
    ("cvt.sat.f32.f32 %f9, %f1; mov.b32 %r9, %f9;", [0x3F80_0000; 2]),
    ("max.f32 %f9, %f2, %f1; mov.b32 %r9, %f9;", [0x3F80_0001; 2]),
    ("min.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", [0x3F80_0001; 2]),
    ("ex2.approx.ftz.f32 %f9, 0fC0400000; mov.b32 %r9, %f9;", [0x3E00_0000; 2]),
    ("min.f32 %f9, 0f80000000, 0f00000000; mov.b32 %r9, %f9;", [0x8000_0000; 2]),
    ("max.f32 %f9, 0f00000000, 0f80000000; mov.b32 %r9, %f9;", [0; 2]),
    ("abs.f32 %f9, 0fBF800000; mov.b32 %r9, %f9;", [0x3F80_0000; 2]),
    ("div.rn.f32 %f9, 0f3F800000, 0f40400000; mov.b32 %r9, %f9;", [0x3EAA_AAAB; 2]),
    ("rcp.rn.f32 %f9, 0f40400000; mov.b32 %r9, %f9;", [0x3EAA_AAAB; 2]),
    ("sqrt.rn.f32 %f9, 0f40000000; mov.b32 %r9, %f9;", [0x3FB5_04F3; 2]),
    ("rsqrt.approx.f32 %f9, 0f40800000; mov.b32 %r9, %f9;", [0x3F00_0000; 2]),
    // Of a third the upper half alone, of what is not normal nothing.
    ("rcp.approx.ftz.f64 %fd1, 0d4008000000000000; mov.b64 {%r7, %r9}, %fd1;", [0x3FD5_5555; 2]),
    ("rcp.approx.ftz.f64 %fd1, 0d4008000000000000; mov.b64 {%r9, %r7}, %fd1;", [0; 2]),
    ("rcp.approx.ftz.f64 %fd1, 0d7FEFFFFFFFFFFFFF; mov.b64 {%r7, %r9}, %fd1;", [0; 2]),
    ("div.u32 %r9, 23, 5;", [4; 2]),
    ("rem.u32 %r9, 23, 5;", [3; 2]),
    ("mad.lo.s32 %r9, %r8, -2, 50;", [50, 8]),
    ("and.b32 %r9, 12, 10;", [8; 2]),
    ("or.b32 %r9, 12, 10;", [14; 2]),
    ("xor.b32 %r9, 12, 10;", [6; 2]),
    ("not.b32 %r9, 12;", [0xFFFF_FFF3; 2]),
    ("setp.eq.s32 %p1, %r8, 21; not.pred %p1, %p1; selp.b32 %r9, 1, 0, %p1;", [1, 0]),
    ("setp.ge.f32 %p1, %f1, %f1; selp.b32 %r9, 1, 0, %p1;", [1; 2]),
    ("setp.gt.f32 %p1, %f1, %f1; selp.b32 %r9, 1, 0, %p1;", [0; 2]),
    ("setp.leu.f32 %p1, %f1, %f1; selp.b32 %r9, 1, 0, %p1;", [1; 2]),
    ("bfi.b32 %r9, 15, 77, 40, 8;", [77; 2]),
    (
        "st.global.v4.f32 [%rd1+96], {%f1, %f1, %f1, 0f3F000000}; ld.global.v2.u32 {%r7, %r9}, [%rd1+104];",
        [0x3F00_0000; 2],
    ),
    (
        "mov.u32 %r7, block_memory; bar.sync 0; st.shared.u32 [%r7], 0; bar.sync 0; atom.shared.or.b32 %r6, [%r7], %r8; \
         bar.sync 0; ld.shared.u32 %r9, [%r7]; bar.sync 0;",
        [31; 2],
    ),
    // A copy whose group is not waited for is not there, and of nothing zeros are.
    (
        "shl.b32 %r7, %r8, 4; st.shared.u32 [%r7], 5; cp.async.ca.shared.global [%r7], [%rd1], 4, 0; \
         cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r6, [%r7]; cp.async.wait_group 0; ld.shared.u32 \
         %r9, [%r7]; shl.b32 %r6, %r6, 8; or.b32 %r9, %r9, %r6;",
        [0x500; 2],
    ),
    ("setp.lt.f32 %p1, %f2, %f1; selp.b32 %r9, 1, 0, %p1;", [0; 2]),
    ("setp.ltu.f32 %p1, %f2, %f1; selp.b32 %r9, 1, 0, %p1;", [1; 2]),
    ("setp.geu.f32 %p1, %f2, %f1; selp.b32 %r9, 1, 0, %p1;", [1; 2]),
    ("setp.ne.f32 %p1, %f2, %f1; selp.b32 %r9, 1, 0, %p1;", [0; 2]),
    ("setp.neu.f32 %p1, %f2, %f1; selp.b32 %r9, 1, 0, %p1;", [1; 2]),
    ("setp.lt.s32 %p1, -1, 0; selp.b32 %r9, 1, 0, %p1;", [1; 2]),
    ("setp.lt.u32 %p1, -1, 0; selp.b32 %r9, 1, 0, %p1;", [0; 2]),
    ("shl.b32 %r9, %r8, 32;", [0; 2]),
    ("shr.s32 %r9, -8, 40;", [u32::MAX; 2]),
    ("shr.u32 %r9, -8, 1;", [0x7FFF_FFFC; 2]),
    ("bfi.b32 %r9, 15, -1, 4, 8;", [0xFFFF_F0FF; 2]),
    ("mul.wide.s32 %rd9, -3, 5; mov.b64 {%r7, %r9}, %rd9;", [u32::MAX; 2]),
    ("mul.wide.u32 %rd9, -1, 2; mov.b64 {%r7, %r9}, %rd9;", [1; 2]),
    ("mov.b64 %rd9, {%r8, 7}; shr.u64 %rd8, %rd9, 32; cvt.u32.u64 %r9, %rd8;", [7; 2]),
    // Half way between two, the even one.
    ("cvt.rn.bf16.f32 %rs1, 0f3F808000; cvt.u32.u16 %r9, %rs1;", [0x3F80; 2]),
    ("cvt.rn.bf16x2.f32 %r9, 0f3F800000, 0f40000000;", [0x3F80_4000; 2]),
    (
        "st.global.u32 [%rd1+96], -128; ld.global.s8 %rs1, [%rd1+96]; cvt.s32.s16 %r9, %rs1;",
        [0xFFFF_FF80; 2],
    ),
    ("st.global.v2.u32 [%rd1+104], {%r8, 9}; ld.global.u32 %r9, [%rd1+108];", [9; 2]),
    ("shfl.sync.bfly.b32 %r9|%p1, %r8, 1, 31, -1;", [1, 20]),
    ("shfl.sync.up.b32 %r9|%p1, %r8, 2, 0, -1; @!%p1 add.s32 %r9, %r9, 50;", [50, 19]),
    ("shfl.sync.down.b32 %r9|%p1, %r8, 12, 31, -1; @!%p1 add.s32 %r9, %r9, 50;", [12, 71]),
    // Within eight lanes.
    ("shfl.sync.idx.b32 %r9, %r8, 9, 6151, -1;", [1, 17]),
    (
        "mov.u32 %r7, block_memory; st.shared.u32 [%r7], 0; bar.sync 0; atom.shared.add.u32 %r6, [%r7], 2; \
         bar.sync 0; ld.shared.u32 %r9, [%r7];",
        [64; 2],
    ),
    (
        "bar.sync 0; shl.b32 %r7, %r8, 4; st.global.u32 [%rd1+112], %r8; cp.async.cg.shared.global.L2::128B [%r7], [%rd1+112], 16, \
         16; cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %r9, [%r7];",
        [0, 21],
    ),
    // Sixteen products of ones, and a half.
    (
        "mov.b32 %r7, 1065369472; mov.b32 %f3, 0f3F000000; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f6, \
         %f7, %f8, %f9}, {%r7, %r7, %r7, %r7}, {%r7, %r7}, {%f3, %f3, %f3, %f3}; mov.b32 %r9, %f9;",
        [0x4184_0000; 2],
    ),
];
const ROWS_AS_THEY_ARE: &str = "shl.b32 %r7, %r8, 4; mul.lo.s32 %r6, %r8, 16777472; add.s32 %r2, %r6, 65536; add.s32 \
    %r3, %r2, 131074; add.s32 %r4, %r3, 131074; add.s32 %r5, %r4, 131074; bar.sync 0; st.shared.v4.u32 [%r7], {%r2, \
    %r3, %r4, %r5}; bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r9, %r4, %r5, %r6}, [%r7];";
const ROWS_TRANSPOSED: &str = "bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r9, %r4, %r5, \
    %r6}, [%r7];";

/// What ends a launch, and how it is said.
const REFUSED: [(&str, &str); 6] = [
    ("ld.global.u32 %r9, [%rd1+2];", "memory is touched at no multiple"),
    ("mov.u32 %r7, 2; ld.shared.u32 %r9, [%r7];", "the block's memory is touched at no multiple"),
    ("mov.u32 %r7, 512; ld.shared.u32 %r9, [%r7];", "is to be in the block's memory, and is not"),
    ("div.u32 %r9, 7, 0;", "divides by nothing"),
    ("mov.u32 %r7, 0; cp.async.ca.shared.global [%r7], [%rd1], 4, 2;", "a copy of a part"),
    ("bar.sync 1;", "barriers but the first"),
];

fn kernel(name: &str, limit: &str, body: &str) -> String {
    format!(
        ".visible .entry {name}(\n\t.param .u64 {name}_param_0\n)\n{limit}\n{{\n\t.reg .pred %p<2>;\n\t.reg .f32 %f<10>;\n\
         \t.reg .f64 %fd<2>;\n\t.reg .b16 %rs<2>;\n\t.reg .b32 %r<10>;\n\t.reg .b64 %rd<10>;\n\tld.param.u64 %rd3, [{name}_param_0];\n{body}\
         \tret;\n}}\n"
    )
}

/// Cases of a kernel: what is free of a lane's words is free of every one's.
const A_ROUND: usize = 24;
/// What is before each case.
const BEFORE: &str = "mov.u32 %r8, %tid.x; mul.wide.u32 %rd2, %r8, 128; add.s64 %rd1, %rd3, %rd2; \
    mov.f32 %f1, 0f3F800001; mov.f32 %f2, 0f7FC00000;";

/// All that is tried, as nvcc would write it.
fn text() -> String {
    let rounds = TRIED.chunks(A_ROUND).enumerate().map(|(round, tried)| {
        let cases = tried.iter().enumerate();
        let body = cases.map(|(at, (code, _))| {
            format!("\t{BEFORE} {code} st.global.u32 [%rd1+{}], %r9;\n", 4 * at)
        });
        kernel(&format!("round_{round}"), "", &body.collect::<String>())
    });
    let refused = REFUSED.iter().enumerate().map(|(at, (code, _))| {
        kernel(&format!("refused_{at}"), "", &format!("\t{BEFORE} {code}\n"))
    });
    rounds.chain(refused).chain([kernel("few", ".maxntid 16, 1, 1", "")]).collect()
}

/// The program that runs it; none where sources of C++20 are not compiled.
fn program() -> Option<PathBuf> {
    let folder = root().join("target/ptx-tests");
    std::fs::create_dir_all(&folder).expect("a folder");
    let written = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a source");
        path
    };
    let empty = written("empty.cpp", "#include <bit>\nint tried = std::bit_width(4u);\n");
    if object(&empty, &[]).is_err() {
        let required = std::env::var("LIMBECK_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == "c++"), "c++ is required");
        say("SKIPPED instructions on the host: no compiler of C++20");
        return None;
    }
    let translated = translate(&text(), 1).expect("what is known").concat();
    let tried = written("tried.cpp", &[LAUNCH, &translated].concat());
    let sources = [tried, root().join("kernels/emulation/blocks.cpp")];
    let all = including(&folder.join("all.cpp"), sources.into_iter()).expect("a source");
    let object = object(&all, &AS_COMPILED).expect("what the header knows");
    let program = folder.join("tried");
    run(Command::new(compiler()).arg(object).arg("-o").arg(&program)).expect("a program");
    Some(program)
}

#[test]
fn instructions_come_to_what_the_isa_says() {
    let Some(program) = program() else { return };
    let said_by = |kernel: &str| read(Command::new(&program).arg(kernel)).expect("an end");
    for (round, tried) in TRIED.chunks(A_ROUND).enumerate() {
        let said = said_by(&format!("round_{round}"));
        let word = |word: &str| word.parse().unwrap_or_else(|_| panic!("{said}"));
        let words: Vec<u32> = said.split_whitespace().map(word).collect();
        for (at, (code, expected)) in tried.iter().enumerate() {
            assert_eq!([words[at], words[21 * 32 + at]], *expected, "{code}");
        }
    }
    for (at, (code, expected)) in REFUSED.iter().enumerate() {
        let said = said_by(&format!("refused_{at}"));
        assert!(said.contains(expected), "{code}: {said}");
    }
    assert!(said_by("few").contains("was compiled for fewer threads"));
}

#[test]
fn what_is_not_known_is_named() {
    let error =
        translate("\n\t.local .align 8 .b8 \t__local_depot0[8];\n", 1).expect_err("local memory");
    let said = format!("{error:#}");
    assert!(said.contains("line 2 is not known here: .local .align 8"), "{said}");
}
