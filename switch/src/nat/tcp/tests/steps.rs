//! One step after the other.

use super::*;
