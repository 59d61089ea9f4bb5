//! Front ends: they parse a request, call the provider and reply, and do nothing else.
//!
//! Each knows the provider only as the trait in [`crate::provider`], so a front end can ask for
//! what the trait offers and has no other way in.

pub mod http;
