//! What nvcc makes of the kernels, as C++: each line of PTX becomes one of calls to `kernels/emulation/ptx.h`, so that
//! what is compiled for a card is carried out on the host, and a complaint names the line of the PTX.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

/// Directives that say nothing about what is computed.
const SILENT: [&str; 7] =
    [".version", ".target", ".address_size", ".pragma", ".minnctapersm", ".loc", ".file"];
/// The block's memory, which all kernels name alike.
const BLOCK_MEMORY: &str = ".extern .shared .align 128 .b8 block_memory[];";
/// What an instruction's types are called.
const TYPES: [&str; 19] = [
    "pred", "b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f16",
    "f32", "f64", "bf16", "bf16x2", "f16x2",
];
/// How a kernel begins.
const ENTRY: &str = ".visible .entry ";
/// Registers that are there from the start, as `emulate.h` calls them.
const SPECIAL: [(&str, &str); 4] = [
    ("%tid.", "threadIdx."),
    ("%ntid.", "blockDim."),
    ("%ctaid.", "blockIdx."),
    ("%nctaid.", "gridDim."),
];

/// The C++ of a file of PTX, its kernels in so many parts of like size.
///
/// # Errors
/// The line that is none of what nvcc makes of these kernels.
pub(crate) fn translate(text: &str, parts: usize) -> Result<Vec<String>> {
    let mut kernel = Kernel::default();
    let begin = "#include \"ptx.h\"\nnamespace compiled {\nusing namespace ptx;\n";
    let mut to = vec![begin.to_owned(); parts];
    for (at, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default().trim();
        let begins = code.starts_with(ENTRY);
        let code = kernel
            .line(code)
            .with_context(|| format!("line {} is not known here: {code}", at + 1))?;
        // To the shortest part, which is the last one then.
        if begins {
            to.sort_by_key(|part| std::cmp::Reverse(part.len()));
        }
        let part = to.last_mut().context("no parts")?;
        if begins {
            writeln!(part, "#line {} \"kernels.ptx\"", at + 1)?;
        }
        writeln!(part, "{code}")?;
    }
    for part in &mut to {
        part.push_str("}  // namespace compiled\n");
    }
    Ok(to)
}

/// The kernels of a file of PTX.
pub(crate) fn kernels(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix(ENTRY)?.strip_suffix('('))
}

/// The kernel that is read.
#[derive(Default)]
struct Kernel {
    name: String,
    /// The threads it was compiled for, where it says so.
    threads: Option<String>,
    /// How many braces are open.
    depth: usize,
}

impl Kernel {
    fn line(&mut self, code: &str) -> Result<String> {
        let word = code.split_whitespace().next().unwrap_or_default();
        if SILENT.contains(&word) || code == BLOCK_MEMORY {
            return Ok(String::new());
        }
        if let Some(entry) = code.strip_prefix(ENTRY) {
            let name = entry.strip_suffix('(').context("a kernel without parameters")?;
            name.clone_into(&mut self.name);
            return Ok(format!("static void {name}("));
        }
        if let Some(parameter) = code.strip_prefix(".param .") {
            return Ok(parameter.to_owned());
        }
        if let Some(threads) = code.strip_prefix(".maxntid ") {
            self.threads = Some(threads.to_owned());
            return Ok(String::new());
        }
        if let Some(registers) = code.strip_prefix(".reg .") {
            return declared(registers);
        }
        if let Some(label) = code.strip_prefix('$').and_then(|code| code.strip_suffix(':')) {
            return Ok(format!("{label}:;"));
        }
        self.statements(code)
    }

    /// Instructions and braces.
    fn statements(&mut self, code: &str) -> Result<String> {
        let mut to = String::new();
        let mut rest = code;
        while !rest.is_empty() {
            let next = rest.chars().next();
            match next {
                Some('{') => to.push_str(&self.open()),
                Some('}') => to.push_str(&self.close()?),
                Some(')') if self.depth == 0 => to.push(')'),
                _ => {
                    let (instruction, behind) = rest.split_once(';').context("no instruction")?;
                    to.push_str(&guarded(instruction.trim())?);
                    rest = behind.trim_start();
                    continue;
                }
            }
            rest = rest[1..].trim_start();
        }
        Ok(to)
    }

    fn open(&mut self) -> String {
        self.depth += 1;
        let threads = if self.depth == 1 { self.threads.take() } else { None };
        threads.map_or_else(|| "{ ".to_owned(), |threads| format!("{{ at_most({threads});"))
    }

    fn close(&mut self) -> Result<String> {
        self.depth = self.depth.checked_sub(1).context("a brace that nothing opened")?;
        Ok(if self.depth == 0 { format!("}} EXPORT({})", self.name) } else { "}".to_owned() })
    }
}

/// `b32 %r<3>;` and `b32 %one, %two;`: the variables.
fn declared(registers: &str) -> Result<String> {
    let registers = registers.strip_suffix(';').context("a register without an end")?;
    let (kind, names) =
        registers.split_once(char::is_whitespace).context("a register without a name")?;
    let mut all = Vec::new();
    for name in names.split(',') {
        match name.trim().strip_suffix('>').and_then(|name| name.split_once('<')) {
            Some((name, count)) => {
                all.extend((0..count.parse::<u32>()?).map(|at| register(&format!("{name}{at}"))));
            }
            None => all.push(register(name.trim())),
        }
    }
    Ok(format!("{kind} {};", all.join(", ")))
}

fn register(name: &str) -> String {
    format!("_{}", name.trim_start_matches('%'))
}

/// An instruction, carried out where its predicate holds.
fn guarded(code: &str) -> Result<String> {
    let Some(rest) = code.strip_prefix('@') else { return instruction(code) };
    let (predicate, code) = rest.split_once(char::is_whitespace).context("a predicate alone")?;
    let (not, predicate) = predicate.strip_prefix('!').map_or(("", predicate), |name| ("!", name));
    Ok(format!("if ({not}{}) {}", register(predicate), instruction(code.trim())?))
}

fn instruction(code: &str) -> Result<String> {
    let (name, operands) = code.split_once(char::is_whitespace).unwrap_or((code, ""));
    let operands = operands.trim();
    ensure!(!name.starts_with('.'), "a directive");
    match name {
        "ret" => return Ok("return;".to_owned()),
        "bra" | "bra.uni" => {
            return Ok(format!(
                "goto {};",
                operands.strip_prefix('$').context("a branch to no label")?
            ));
        }
        _ => {}
    }
    let (types, words): (Vec<&str>, Vec<&str>) =
        name.split('.').partition(|word| TYPES.contains(word));
    let types = if types.is_empty() { String::new() } else { format!("<{}>", types.join(", ")) };
    let operands = split(operands).into_iter().map(operand).collect::<Result<Vec<_>>>()?;
    Ok(format!("op_{}{types}({});", words.join("_").replace("::", "__"), operands.join(", ")))
}

/// Operands between commas outside of braces.
fn split(operands: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = operands.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn operand(text: &str) -> Result<String> {
    let inner = |open, close| text.strip_prefix(open).and_then(|text| text.strip_suffix(close));
    let several = |texts: Vec<&str>| -> Result<String> {
        let operands = texts.into_iter().map(operand).collect::<Result<Vec<_>>>()?;
        Ok(format!("all({})", operands.join(", ")))
    };
    if let Some(inner) = inner('{', '}') {
        return several(split(inner));
    }
    if let Some(inner) = inner('[', ']') {
        let (from, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        // A parameter is none of a register's addresses.
        if !from.starts_with('%') {
            return if offset == "0" { Ok(from.to_owned()) } else { bail!("a part of {from}") };
        }
        return Ok(format!("at({}, {})", operand(from)?, offset.parse::<i64>()?));
    }
    if text.contains('|') {
        return several(text.split('|').collect());
    }
    if let Some((from, to)) = SPECIAL.iter().find(|(from, _)| text.starts_with(from)) {
        return Ok(text.replacen(from, to, 1));
    }
    if text.starts_with('%') {
        return Ok(register(text));
    }
    if let Some(bits) = text.strip_prefix("0f") {
        return Ok(format!("std::bit_cast<f32>(0x{bits}u)"));
    }
    if let Some(bits) = text.strip_prefix("0d") {
        return Ok(format!("std::bit_cast<f64>(0x{bits}ull)"));
    }
    if text.parse::<i64>().is_ok() {
        return Ok(format!("Written({text})"));
    }
    // A name of the block's memory.
    Ok(text.to_owned())
}

#[cfg(test)]
#[path = "ptx_tests.rs"]
mod tests;
