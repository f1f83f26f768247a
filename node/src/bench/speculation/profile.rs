//! How often proposals are accepted, where that is assumed and not measured; and what a tree is worth then.

use std::str::FromStr;

use takt_eagle_spec::tree::{DraftTree, Drafter, Frontier, Proposal, Proposals};

/// Depths that numbers of one's own may name.
const MAX_DEPTHS: usize = 16;
/// The share that each further proposal gets of what those before it leave.
pub const FURTHER_SHARE: f64 = 0.35;

/// Chances that proposals are accepted, depth by depth: assumed.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// As it was asked for.
    pub name: String,
    /// Of the first proposal at each depth, where everything before it was accepted; the last holds for all deeper ones.
    pub first: Vec<f64>,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let first = match text {
            "good" => vec![0.85, 0.83, 0.82, 0.81, 0.8, 0.8, 0.8],
            "fair" => vec![0.7, 0.65, 0.62, 0.6, 0.6, 0.6, 0.6],
            "poor" => vec![0.4, 0.35, 0.3, 0.3, 0.3, 0.3, 0.3],
            numbers => numbers.split(',').map(chance).collect::<Result<_, _>>()?,
        };
        if first.len() > MAX_DEPTHS {
            return Err(format!("{} numbers: expected at most {MAX_DEPTHS}, one a depth", first.len()));
        }
        Ok(Self { name: text.to_owned(), first })
    }
}

fn chance(text: &str) -> Result<f64, String> {
    let expected = "expected good, fair, poor, or chances from 0 to 1 such as 0.8,0.7,0.6";
    let value: f64 =
        text.trim().parse().map_err(|_| format!("{text:?} is no profile and no number: {expected}"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(format!("{value} is no chance: {expected}")) }
}

impl Profile {
    /// Chance that the proposal of `rank` (0 is the first) at `depth` (1 is below the root) is the target's own choice, where everything above
    /// it is.
    #[must_use]
    pub fn chance(&self, depth: usize, rank: usize) -> f64 {
        let first = self.first.get(depth.saturating_sub(1)).or(self.first.last()).copied().unwrap_or(0.0);
        let (mut chance, mut left) = (first, 1.0 - first);
        for _ in 0..rank {
            // Never likelier than the one before it: proposals come likeliest first.
            chance = (FURTHER_SHARE * left).min(chance);
            left -= chance;
        }
        chance
    }
}

/// A drafter whose proposals are `inner`'s, at its cost, and as likely as the profile says.
#[derive(Debug)]
pub struct Assumed<'a, D> {
    /// Proposes.
    pub inner: D,
    /// Says how likely.
    pub profile: &'a Profile,
    /// Memory for `inner`'s lists.
    pub scratch: &'a mut Proposals,
}

impl<D: Drafter> Drafter for Assumed<'_, D> {
    fn propose(
        &mut self,
        level: &[Frontier],
        top_k: usize,
        out: &mut Proposals,
    ) -> Result<(), takt_engine::EngineError> {
        self.scratch.clear();
        self.inner.propose(level, top_k, self.scratch)?;
        for (idx, node) in level.iter().enumerate() {
            for (rank, proposal) in self.scratch.list(idx).iter().enumerate() {
                let log_prob = self.profile.chance(node.depth + 1, rank).ln() as f32;
                out.push(Proposal { token: proposal.token, log_prob });
            }
            out.end_list();
        }
        Ok(())
    }
}

/// Tokens a round of `tree` emits on average, the target's own included, when its log-probabilities are right: of all paths at most one is
/// accepted, so every node adds the chance that it is reached.
#[must_use]
pub fn expected_tokens(tree: &DraftTree) -> f64 {
    tree.cumulative_log_probs.iter().map(|&log_prob| f64::from(log_prob).exp()).sum()
}

/// `[accept_len − 1]`: share of rounds that emit so many tokens, when the tree's log-probabilities are right.
#[must_use]
pub fn expected_shares(tree: &DraftTree) -> Vec<f64> {
    let deepest = tree.depths.iter().copied().max().unwrap_or(0);
    let mut reached = vec![0.0; deepest + 2];
    for (&depth, &log_prob) in tree.depths.iter().zip(&tree.cumulative_log_probs) {
        reached[depth] += f64::from(log_prob).exp();
    }
    reached.windows(2).map(|pair| pair[0] - pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use takt_eagle_spec::{
        tree::{TreeShape, grow},
        verify::walk,
    };

    use super::*;

    /// Proposes tokens 0, 1, 2, … everywhere.
    struct Counting;

    impl Drafter for Counting {
        fn propose(
            &mut self,
            level: &[Frontier],
            top_k: usize,
            out: &mut Proposals,
        ) -> Result<(), takt_engine::EngineError> {
            for _ in level {
                (0..top_k as u32).for_each(|token| out.push(Proposal { token, log_prob: -1.0 }));
                out.end_list();
            }
            Ok(())
        }
    }

    fn tree_of(profile: &Profile, shape: TreeShape) -> DraftTree {
        let mut scratch = Proposals::default();
        grow(&mut Assumed { inner: Counting, profile, scratch: &mut scratch }, 9, shape).unwrap()
    }

    /// Plays every sequence of `num_left` more choices of the target, each one of the ranks 0, 1, … `num_ranks - 1` or none of them (token 99),
    /// through [`walk`], and adds the shares of rounds by tokens emitted.
    fn enumerate(
        (profile, num_ranks): (&Profile, usize),
        tree: &DraftTree,
        num_left: usize,
        said: &mut Vec<u32>,
        chance: f64,
        shares: &mut [f64],
    ) {
        if num_left == 0 {
            let (mut path, mut idx) = (Vec::new(), 0);
            let choose = |_| {
                idx += 1;
                Ok::<_, std::convert::Infallible>(Some(said[idx - 1]))
            };
            walk(tree, choose, &mut path).unwrap();
            shares[path.len() - 1] += chance;
            return;
        }
        let depth = said.len() + 1;
        let chances: Vec<f64> = (0..num_ranks).map(|rank| profile.chance(depth, rank)).collect();
        let other = 1.0 - chances.iter().sum::<f64>();
        for (token, of_token) in (0..).zip(chances).chain([(99, other)]) {
            said.push(token);
            enumerate((profile, num_ranks), tree, num_left - 1, said, chance * of_token, shares);
            said.pop();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn expected_tokens_are_those_of_every_possible_round(
            first in prop::collection::vec(0.0_f64..1.0, 1..5), top_k in 1_usize..4, num_levels in 1_usize..5, num_nodes in 2_usize..14,
        ) {
            let profile = Profile { name: "any".into(), first };
            let tree = tree_of(&profile, TreeShape { top_k, num_levels, num_nodes });
            let mut shares = vec![0.0; num_levels + 1];
            enumerate((&profile, top_k), &tree, num_levels + 1, &mut Vec::new(), 1.0, &mut shares);
            let mean: f64 = shares.iter().enumerate().map(|(idx, share)| (idx + 1) as f64 * share).sum();
            prop_assert!((expected_tokens(&tree) - mean).abs() < 1e-4, "{} {mean}", expected_tokens(&tree));
            for (idx, share) in expected_shares(&tree).iter().enumerate() {
                prop_assert!((share - shares[idx]).abs() < 1e-4, "{shares:?}");
            }
        }

        #[test]
        fn chances_fall_with_the_rank_and_leave_something(first in 0.0_f64..=1.0, depth in 1_usize..9) {
            let profile = Profile { name: "any".into(), first: vec![first] };
            let chances: Vec<f64> = (0..8).map(|rank| profile.chance(depth, rank)).collect();
            prop_assert!(chances.windows(2).all(|pair| pair[1] <= pair[0]), "{chances:?}");
            prop_assert!(chances.iter().sum::<f64>() <= 1.0 + 1e-12);
        }
    }

    #[test]
    fn a_chain_emits_what_the_products_of_its_chances_say() {
        let profile: Profile = "0.8,0.5".parse().unwrap();
        let tree = tree_of(&profile, TreeShape::chain(3));
        assert!((expected_tokens(&tree) - (1.0 + 0.8 + 0.4 + 0.2)).abs() < 1e-6);
        assert!((profile.chance(1, 1) - 0.35 * 0.2).abs() < 1e-12);
        assert!((profile.chance(7, 0) - 0.5).abs() < 1e-12, "the last holds for all deeper ones");
    }

    #[test]
    fn what_is_no_profile_is_refused_with_what_was_expected() {
        for name in ["good", "fair", "poor"] {
            let profile: Profile = name.parse().unwrap();
            assert!(profile.first.windows(2).all(|pair| pair[1] <= pair[0]));
        }
        assert_eq!("0.8, 0.7,1".parse::<Profile>().unwrap().first, [0.8, 0.7, 1.0]);
        let many = ["0.5"; 17].join(",");
        for (text, word) in [
            ("excellent", "\"excellent\""),
            ("", "good, fair, poor"),
            ("0.8,,0.7", "\"\" is no profile"),
            ("0.8,1.2", "1.2 is no chance"),
            ("-0.1", "-0.1 is no chance"),
            ("NaN", "NaN is no chance"),
            (many.as_str(), "17 numbers"),
        ] {
            let error = text.parse::<Profile>().unwrap_err();
            assert!(error.contains(word) && error.contains("expected"), "{text}: {error}");
        }
    }
}
