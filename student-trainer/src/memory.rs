//! Memory of this process and of the machine.

use sysinfo::{Process, ProcessesToUpdate, System};

/// Memory this process may still take, in bytes: the machine's, or its control group's where that is less
/// (a container, a service with a limit, a batch job; pages of files that are merely cached count as free
/// in both); none where the system does not say.
pub(crate) fn available() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    if system.total_memory() == 0 {
        return None;
    }
    let own = sysinfo::get_current_pid().ok()?;
    system.refresh_processes(ProcessesToUpdate::Some(&[own]), false);
    // The process's own group and those around it, not the root's.
    let group = system.process(own).and_then(Process::cgroup_limits);
    Some(least(system.available_memory(), group.map(|group| [group.total_memory, group.rss])))
}

/// Memory of the machine, in bytes; none where the system does not say.
pub(crate) fn total() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    Some(system.total_memory()).filter(|&total| total > 0)
}

/// What the machine has left, or a group of a size `[limit, taken]` where that is less.
fn least(machine: u64, group: Option<[u64; 2]>) -> u64 {
    let left = group.map_or(u64::MAX, |[limit, taken]| limit.saturating_sub(taken));
    machine.min(left)
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

    #[test]
    fn a_control_group_counts_where_it_is_the_smaller() {
        assert_eq!(least(10, None), 10);
        assert_eq!(least(10, Some([8, 3])), 5);
        assert_eq!(least(10, Some([40, 3])), 10);
        // A full one leaves nothing, which is not the same as not knowing.
        assert_eq!(least(10, Some([8, 9])), 0);
    }
}
