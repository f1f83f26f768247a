//! Which target tokens a head can propose.

use takt_engine::{EngineError, Result, TokenId};

/// `offsets` is `d2t`: the target's token is the draft's plus its offset. `members` is `t2d`, true for every token that can be proposed; some files lack it.
/// Returns the target's token of every draft token.
pub(super) fn target_tokens(
    offsets: &[i64],
    members: Option<&[bool]>,
    vocab_size: usize,
) -> Result<Vec<TokenId>> {
    let error = |fact: String| EngineError::Tensor { name: "d2t".into(), fact };
    let mut tokens = Vec::with_capacity(offsets.len());
    for (draft, &offset) in offsets.iter().enumerate() {
        let target = i64::try_from(draft).ok().and_then(|draft| draft.checked_add(offset));
        let token =
            target.and_then(|target| usize::try_from(target).ok()).filter(|token| *token < vocab_size);
        let Some(token) = token.and_then(|token| TokenId::try_from(token).ok()) else {
            return Err(error(format!(
                "draft token {draft} + {offset} is no token of a target with {vocab_size}: offsets are expected, and this head may \
                 belong to another tokenizer"
            )));
        };
        tokens.push(token);
    }
    if let Some(members) = members {
        let num_members = members.iter().filter(|is_member| **is_member).count();
        if members.len() != vocab_size || num_members != offsets.len() {
            return Err(EngineError::Tensor {
                name: "t2d".into(),
                fact: format!(
                    "{num_members} of {} tokens are marked, expected {} of {vocab_size}",
                    members.len(),
                    offsets.len()
                ),
            });
        }
        if let Some(token) = tokens.iter().find(|&&token| !members[token as usize]) {
            return Err(error(format!("token {token} can be proposed, but t2d does not mark it")));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_lead_to_the_marked_tokens_or_are_refused() {
        let members = [true, false, true, true];
        assert_eq!(target_tokens(&[0, 1, 1], Some(&members), 4).unwrap(), [0, 2, 3]);
        assert_eq!(target_tokens(&[3], None, 4).unwrap(), [3]);
        for (offsets, members, word) in [
            (&[0, 1, 2][..], None, "draft token 2 + 2"),
            (&[-1], None, "0 + -1"),
            (&[i64::MAX], None, "no token"),
            (&[0, 1], Some(&members[..]), "3 of 4 tokens are marked, expected 2 of 4"),
            (&[0, 0, 1], Some(&members), "token 1 can be proposed"),
            (&[0, 1, 1], Some(&members[..3]), "expected 3 of 4"),
        ] {
            let error = target_tokens(offsets, members, 4).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
