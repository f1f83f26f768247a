//! Acceptance of a draft tree's path.
