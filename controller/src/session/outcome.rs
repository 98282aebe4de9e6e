//! How opening, running and unwinding can end, told as one story.
//! No exit happens here; `exit_status` says which one it would be (cli: 1 nothing left, 3 something owed, 4 busy).

use std::fmt;

/// The lock was not taken.
#[derive(Debug)]
pub enum OpenError {
    /// Somebody else has it, or too many jobs run. Nothing was touched.
    Busy(String),
    /// Nothing of a job is here.
    Failed(anyhow::Error),
    /// An earlier job left something, and could not be taken up.
    Owing(anyhow::Error),
}

/// A plan was not carried out, and what became of what had been done.
#[derive(Debug)]
pub struct RunError {
    pub story: anyhow::Error,
    pub unwound: Unwound,
}

/// What an unwinding did.
#[derive(Debug, Default)]
pub struct Unwound {
    pub done: Vec<String>,
    /// What the user should know and need not act upon.
    pub notes: Vec<String>,
    /// What was no good any more before it was undone: a backup that was made of it is not whole.
    pub spoilt: Vec<String>,
    /// What could not be undone and is still owed.
    pub errors: Vec<anyhow::Error>,
}

impl OpenError {
    pub fn exit_status(&self) -> u8 {
        match self {
            OpenError::Busy(_) => 4,
            OpenError::Failed(_) => 1,
            OpenError::Owing(_) => 3,
        }
    }
}

impl RunError {
    pub fn exit_status(&self) -> u8 {
        if self.unwound.errors.is_empty() { 1 } else { 3 }
    }
}

impl Unwound {
    pub fn owes_nothing(&self) -> bool {
        self.errors.is_empty()
    }

    /// Joins the report of a second pass.
    pub fn and(mut self, other: Unwound) -> Unwound {
        self.done.extend(other.done);
        self.notes.extend(other.notes);
        self.spoilt.extend(other.spoilt);
        self.errors.extend(other.errors);
        self
    }
}

impl From<anyhow::Error> for OpenError {
    fn from(error: anyhow::Error) -> OpenError {
        OpenError::Failed(error)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Busy(why) => f.write_str(why),
            OpenError::Failed(error) => write!(f, "{error:#}"),
            OpenError::Owing(error) => {
                write!(f, "{error:#}; an earlier job still owes something: run cleanup")
            }
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.story)?;
        if !self.unwound.errors.is_empty() {
            write!(f, "; and {}", self.unwound)?;
        }
        Ok(())
    }
}

impl fmt::Display for Unwound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errors.is_empty() {
            return write!(f, "everything was undone");
        }
        write!(f, "this is still owed, run cleanup")?;
        for error in &self.errors {
            write!(f, "; {error:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for OpenError {}
impl std::error::Error for RunError {}
