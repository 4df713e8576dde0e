//! Who is asked when, and what.

/// The order of `contenders` in a round. Pairs of rounds are a rotation and its reverse, so that over twice as many rounds
/// as contenders each has every place equally often, and nobody always runs behind the same one.
pub(super) fn order(round: usize, contenders: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contenders).collect();
    if contenders > 0 {
        order.rotate_left(round / 2 % contenders);
    }
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// Which prompts a turn has: `requests` of them from here on. Every round and every concurrency has its own, the same for
/// all contenders.
pub(super) fn first_prompt(round: usize, level: usize, levels: usize, requests: usize) -> usize {
    (round * levels + level) * requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_turns() {
        assert_eq!(order(0, 2), [0, 1]);
        assert_eq!(order(1, 2), [1, 0]);
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
        assert_eq!(order(2, 3), [1, 2, 0]);
        assert!(order(5, 0).is_empty());
    }

    #[test]
    fn every_place_falls_to_each_equally_often() {
        for contenders in 1..6 {
            let mut places = vec![vec![0; contenders]; contenders];
            for round in 0..2 * contenders {
                for (place, contender) in order(round, contenders).into_iter().enumerate() {
                    places[contender][place] += 1;
                }
            }
            assert!(places.iter().flatten().all(|count| *count == 2), "{places:?}");
        }
    }

    #[test]
    fn no_prompt_comes_twice() {
        let (rounds, levels, requests) = (4, 3, 5);
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..rounds {
            for level in 0..levels {
                let first = first_prompt(round, level, levels, requests);
                assert!((first..first + requests).all(|prompt| seen.insert(prompt)));
            }
        }
        assert_eq!(seen.len(), rounds * levels * requests);
        assert_eq!(seen.last(), Some(&(rounds * levels * requests - 1)));
    }
}
