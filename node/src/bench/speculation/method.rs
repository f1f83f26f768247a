//! The ways an answer is decoded.

use takt_eagle_spec::tree::TreeShape;

/// Levels of the trees that are measured.
const TREE_LEVELS: usize = 5;
/// Lengths of the draft head's chains.
const CHAINS: [usize; 6] = [1, 2, 3, 4, 5, 7];
/// Lengths of the chains that are looked up.
const LOOKUP_CHAINS: [usize; 3] = [2, 4, 7];
/// Nodes expanded on each level of a tree, and its nodes in all.
const TREES: [(usize, [usize; 3]); 2] = [(2, [8, 16, 32]), (4, [8, 16, 32])];

/// Who proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposer {
    /// The engine's EAGLE-3 head.
    Head,
    /// What followed the last tokens before.
    Lookup,
}

impl Proposer {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "EAGLE-3",
            Self::Lookup => "lookup",
        }
    }

    /// For programs.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Head => "eagle3",
            Self::Lookup => "lookup",
        }
    }
}

/// How an answer is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One token a step.
    Plain,
    /// Trees of one shape in every round.
    Fixed(Proposer, TreeShape),
    /// What the policy thinks pays.
    Adaptive(Proposer),
}

impl Method {
    /// All that a step of `max_nodes` nodes has room for, plain decoding first; the draft head's with `has_head`.
    #[must_use]
    pub fn all(has_head: bool, has_lookup: bool, max_nodes: usize) -> Vec<Self> {
        let mut all = vec![Self::Plain];
        if has_head {
            all.extend(CHAINS.map(|len| Self::Fixed(Proposer::Head, TreeShape::chain(len))));
            all.extend(TREES.iter().flat_map(|&(top_k, sizes)| {
                sizes.map(|num_nodes| {
                    Self::Fixed(Proposer::Head, TreeShape { top_k, num_levels: TREE_LEVELS, num_nodes })
                })
            }));
            all.push(Self::Adaptive(Proposer::Head));
        }
        if has_lookup {
            all.extend(LOOKUP_CHAINS.map(|len| Self::Fixed(Proposer::Lookup, TreeShape::chain(len))));
            all.push(Self::Adaptive(Proposer::Lookup));
        }
        all.retain(|method| method.shape().is_none_or(|shape| shape.num_nodes <= max_nodes));
        all
    }

    /// Who proposes; `None` for plain decoding.
    #[must_use]
    pub fn proposer(self) -> Option<Proposer> {
        match self {
            Self::Plain => None,
            Self::Fixed(proposer, _) | Self::Adaptive(proposer) => Some(proposer),
        }
    }

    /// The shape that is fixed; `None` where none is.
    #[must_use]
    pub fn shape(self) -> Option<TreeShape> {
        match self {
            Self::Fixed(_, shape) => Some(shape),
            Self::Plain | Self::Adaptive(_) => None,
        }
    }

    /// `plain`, `chain`, `tree` or `adaptive`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fixed(_, shape) if shape.top_k == 1 => "chain",
            Self::Fixed(..) => "tree",
            Self::Adaptive(_) => "adaptive",
        }
    }

    /// For people: `EAGLE-3 tree, 4 wide, 16 nodes`.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Plain => "plain".into(),
            Self::Fixed(proposer, shape) if shape.top_k == 1 => {
                format!("{} chain of {}", proposer.name(), shape.num_levels)
            }
            Self::Fixed(proposer, shape) => {
                format!("{} tree, {} wide, {} nodes", proposer.name(), shape.top_k, shape.num_nodes)
            }
            Self::Adaptive(proposer) => format!("{} adaptive", proposer.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_small_steps_have_small_trees() {
        let all = Method::all(true, true, 64);
        let mut names: Vec<String> = all.iter().map(|method| method.name()).collect();
        assert_eq!((names[0].as_str(), names.len()), ("plain", 1 + 6 + 6 + 1 + 3 + 1));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let small = Method::all(false, true, 5);
        assert_eq!(small.len(), 1 + 2 + 1, "{small:?}");
    }
}
