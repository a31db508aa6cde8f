//! Named points at which a test can make the process die.

/// Aborts the process here if the environment says so: `ORBIT_FAILPOINT=name` on the first pass,
/// `ORBIT_FAILPOINT=name:3` on the third. Does nothing without the feature `failpoints`, which is
/// for crash tests alone.
#[inline]
pub fn failpoint(name: &str) {
    #[cfg(feature = "failpoints")]
    armed::pass(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(super) fn pass(name: &str) {
        static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
        static PASSES: AtomicU64 = AtomicU64::new(0);
        let armed = ARMED.get_or_init(|| {
            let set = std::env::var("ORBIT_FAILPOINT").ok()?;
            Some(match set.split_once(':') {
                Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
                None => (set, 1),
            })
        });
        if let Some((armed, nth)) = armed
            && armed == name
            && PASSES.fetch_add(1, Ordering::Relaxed) + 1 == *nth
        {
            std::process::abort();
        }
    }
}
