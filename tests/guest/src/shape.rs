//! How a frame, or an empty receive buffer, is cut into descriptors.

/// The descriptors of one chain, by their lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pieces: Vec<usize>,
    indirect: bool,
}

impl Shape {
    /// One descriptor for everything.
    #[must_use]
    pub fn one() -> Self {
        Self::pieces(&[])
    }

    /// The header in a descriptor of its own, as older drivers do it.
    #[must_use]
    pub fn header_apart(header_len: usize) -> Self {
        Self::pieces(&[header_len])
    }

    /// Descriptors of these lengths, header included; one more for whatever is left.
    #[must_use]
    pub fn pieces(lengths: &[usize]) -> Self {
        Self { pieces: lengths.to_vec(), indirect: false }
    }

    /// The same descriptors in an indirect table.
    #[must_use]
    pub fn indirect(self) -> Self {
        Self { indirect: true, ..self }
    }

    /// True if the descriptors stand in an indirect table.
    #[must_use]
    pub fn is_indirect(&self) -> bool {
        self.indirect
    }

    /// Cuts `total` bytes. Lengths beyond the total are left out; what they don't reach is the last piece.
    #[must_use]
    pub fn cut(&self, total: usize) -> Vec<usize> {
        let mut left = total;
        let mut cut = Vec::with_capacity(self.pieces.len() + 1);
        for &piece in &self.pieces {
            if left == 0 {
                break;
            }
            cut.push(piece.min(left));
            left -= piece.min(left);
        }
        if left > 0 {
            cut.push(left);
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_to_the_total() {
        assert_eq!(Shape::one().cut(72), [72]);
        assert_eq!(Shape::header_apart(12).cut(72), [12, 60]);
        assert_eq!(Shape::pieces(&[1, 1, 100]).cut(72), [1, 1, 70]);
        assert_eq!(Shape::pieces(&[36, 36]).cut(72), [36, 36]);
    }
}
