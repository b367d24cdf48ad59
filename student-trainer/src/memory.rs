//! Memory of this process and of the machine.

use sysinfo::System;

/// Memory this process may still take, in bytes: the machine's, or its container's where that is less;
/// none where the system does not say.
pub(crate) fn available() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let of_container = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    Some(system.available_memory().min(of_container)).filter(|bytes| *bytes > 0)
}

/// Largest resident memory of this process so far.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_some_of_what_the_machine_has() {
        let mut system = System::new().unwrap();
        system.refresh_memory();
        let free = available().expect("this system tells");
        assert!(free > 0 && free <= system.total_memory(), "{free}");
    }
}
