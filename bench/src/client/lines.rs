//! Lines of a byte stream.

/// Cuts what was received into lines; what is read is given back in one go, not line by line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    received: Vec<u8>,
    /// Bytes of `received` that were handed out.
    taken: usize,
    /// Bytes of `received` in which no line end is left to be found.
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, piece: &[u8]) {
        if self.taken > 0 {
            self.received.drain(..self.taken);
            self.searched -= self.taken;
            self.taken = 0;
        }
        self.received.extend_from_slice(piece);
    }

    /// The next whole line without its end, `\n` or `\r\n`.
    pub(super) fn next_line(&mut self) -> Option<&[u8]> {
        let Some(found) = self.received[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.received.len();
            return None;
        };
        let (start, end) = (self.taken, self.searched + found);
        self.taken = end + 1;
        self.searched = self.taken;
        let line = &self.received[start..end];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_come_in() {
        let text = b"data: one\r\n\r\n: c\ndata: two\n\nrest";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.next_line() {
                    got.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            assert_eq!(got, ["data: one", "", ": c", "data: two", ""], "pieces of {size}");
        }
    }
}
