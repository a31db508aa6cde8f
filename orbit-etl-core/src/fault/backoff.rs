//! Pauses before something is tried again.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Nobody is left alone for longer, whatever it asks for.
const LONGEST_ASKED: Duration = Duration::from_secs(3_600);

/// Full jitter: anything between nothing and the doubled pause, so that those who failed together don't
/// come back together; but not before the other side has asked to be called again.
pub(crate) fn pause(first: Duration, longest: Duration, nth: u32, asked: Option<Duration>) -> Duration {
    let ceiling = first.saturating_mul(1 << nth.saturating_sub(1).min(16)).min(longest);
    let random = RandomState::new().build_hasher().finish();
    #[allow(clippy::cast_precision_loss)] // A random share needs no more than 52 bits.
    let jittered = ceiling.mul_f64(random as f64 / u64::MAX as f64);
    jittered.max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_never_shorter_than_asked() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        for nth in 1..40 {
            let most = (first * 2_u32.pow(nth.min(20) - 1)).min(longest);
            assert!(pause(first, longest, nth, None) <= most);
            assert!(pause(first, longest, nth, Some(longest * 2)) == longest * 2);
        }
        let some: Vec<_> = (0..50).map(|_| pause(first, longest, 4, None)).collect();
        assert!(some.iter().any(|p| *p < longest / 4) && some.iter().any(|p| *p > longest / 4));
        assert_eq!(pause(first, longest, 1, Some(Duration::MAX)), LONGEST_ASKED);
    }
}
