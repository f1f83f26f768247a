//! One request's token timeline.
