//! Arrays.

use super::{Builder, Built};
use crate::{
    Result,
    grammar::schema::{
        ArrayShape, Shape,
        merge::{Merged, Types},
        parts::ArrayParts,
    },
};

impl<'a> Builder<'a> {
    pub(super) fn array(&mut self, merged: &Merged<'a>, types: Types, at: &str) -> Result<Option<Built>> {
        if !types.contains(Types::ARRAY) {
            return Ok(None);
        }
        let parts = ArrayParts::of(&merged.parts, at)?;
        let depth = self.open_references.len();
        self.open_references.extend(&merged.references);
        let built = self.array_of(&parts, at);
        self.open_references.truncate(depth);
        built.map(Some)
    }

    pub(super) fn array_of(&mut self, parts: &ArrayParts<'a>, at: &str) -> Result<Built> {
        let mut max_items = parts.max_items;
        let mut prefix = Vec::new();
        for item_idx in 0..parts.prefix_len.min(max_items.unwrap_or(usize::MAX)) {
            let place = format!("{at}/{item_idx}");
            match self.value(&parts.item(item_idx), &place)? {
                Built::Node(id) => {
                    // The first item of an array that may be empty is never left unbegun: the array is closed instead.
                    if item_idx > 0 || parts.min_items > 0 {
                        self.require_fill(id, &place)?;
                    }
                    prefix.push(id);
                }
                Built::Never(_) => {
                    max_items = Some(item_idx);
                    break;
                }
            }
        }
        let place = format!("{at}/*");
        let has_more = max_items.is_none_or(|max_items| max_items > prefix.len());
        let items = match parts.rest() {
            _ if !has_more => None,
            Some(schemas) if schemas.is_empty() => Some(self.free_value(None, &place)?),
            Some(schemas) => Some(self.value(&schemas, &place)?),
            None => None,
        };
        let items = match items {
            Some(Built::Node(id)) => Some(id),
            Some(Built::Never(_)) | None => None,
        };
        if let Some(items) = items {
            let may_be_unbegun = !prefix.is_empty() || parts.min_items > 0 || max_items != Some(1);
            if may_be_unbegun {
                self.require_fill(items, &place)?;
            }
        } else {
            max_items = Some(max_items.unwrap_or(usize::MAX).min(prefix.len()));
        }
        if let Some(max_items) = max_items.filter(|&max_items| max_items < parts.min_items) {
            let why = format!("{} items are demanded, at most {max_items} are possible", parts.min_items);
            return Ok(Built::Never(why));
        }
        let shape = ArrayShape { prefix, items, min_items: parts.min_items, max_items };
        self.node(Shape::Array(shape), None, None, at)
    }
}
