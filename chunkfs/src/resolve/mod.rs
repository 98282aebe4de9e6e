//! Finding out what has changed, while the view is already there: the leaves that somebody asks for first, the
//! others in disk order behind them. What is found is stored before it is shown.

mod compare;
mod queue;
mod ranges;
mod sample;
mod tracked;
mod worker;

pub use compare::{Buffer, content_of};
pub use queue::Retry;
pub use sample::check_sample;
pub use tracked::{LeafView, NotShown, Tracked, holes_of};
pub use worker::{Progress, Resolver};

#[cfg(test)]
mod tests;
