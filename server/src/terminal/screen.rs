//! Cells as rows of a terminal, drawn in place: every drawing overwrites the one before it.

use std::io::{self, Write};

use unicode_width::UnicodeWidthChar;

use super::canvas::{Cell, Style};

const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const RESET: &str = "\x1b[0m";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Columns from one tab stop to the next.
const TAB: usize = 8;

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl Size {
    /// The terminal behind the standard output; a common size if it does not say.
    pub(super) fn of_terminal() -> Self {
        match terminal_size::terminal_size_of(io::stdout()) {
            Some((width, height)) if width.0 > 0 && height.0 > 0 => {
                Self { columns: width.0.into(), rows: height.0.into() }
            }
            _ => Self { columns: 80, rows: 24 },
        }
    }
}

/// A row of a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Row {
    cells: Vec<Cell>,
    width: usize,
}

/// Breaks cells into rows of at most `columns` columns, which is at least 2 so that every character fits.
pub(super) fn layout(cells: &[Cell], columns: usize) -> Vec<Row> {
    let columns = columns.max(2);
    let mut rows = Vec::new();
    let mut current = Row::default();
    for cell in cells {
        let (char, count) = match cell.char {
            '\n' => {
                rows.push(std::mem::take(&mut current));
                continue;
            }
            '\t' => (' ', (TAB - current.width % TAB).min(columns.saturating_sub(current.width).max(1))),
            char => (char, 1),
        };
        // Marks that combine with the character before them have no width and stay with it.
        let width = char.width().unwrap_or(0);
        for _ in 0..count {
            if current.width + width > columns {
                rows.push(std::mem::take(&mut current));
            }
            current.cells.push(Cell { char, style: cell.style });
            current.width += width;
        }
    }
    rows.push(current);
    rows
}

/// The `height` rows to look at: those that end shortly behind the first undecided one.
pub(super) fn window(rows: &[Row], height: usize) -> &[Row] {
    let height = height.max(1).min(rows.len());
    let is_undecided = |row: &Row| row.cells.iter().any(|cell| cell.style == Style::Undecided);
    let first = rows.iter().position(is_undecided).unwrap_or(rows.len());
    // A third of the window shows what is about to be decided.
    let end = (first + 1 + height / 3).clamp(height, rows.len());
    &rows[end - height..end]
}

/// Rows as text with escape sequences for their styles.
pub(super) fn paint(rows: &[Row], colors: bool) -> Vec<String> {
    rows.iter().map(|row| paint_row(row, colors)).collect()
}

fn paint_row(row: &Row, colors: bool) -> String {
    let mut text = String::new();
    let mut style = Style::Plain;
    for cell in &row.cells {
        if colors && cell.style != style {
            text.push_str(RESET);
            text.push_str(match cell.style {
                Style::Plain => "",
                Style::Fresh => "\x1b[1;32m",
                Style::Undecided => "\x1b[2m",
            });
            style = cell.style;
        }
        text.push(cell.char);
    }
    if style != Style::Plain {
        text.push_str(RESET);
    }
    text
}

/// A region of a terminal from the line of the cursor downwards.
#[derive(Debug)]
pub(super) struct Screen<W: Write> {
    out: W,
    colors: bool,
    /// Widths of the rows that are drawn; empty if none are.
    drawn: Vec<usize>,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, colors: bool) -> Self {
        Self { out, colors, drawn: Vec::new() }
    }

    /// Draws `cells` over what is drawn.
    pub(super) fn draw(&mut self, cells: &[Cell], size: Size) -> io::Result<()> {
        // In the last column a terminal is between two rows, and not all agree what erasing means there. The last line
        // stays free for the same reason.
        let rows = layout(cells, size.columns.saturating_sub(1));
        let rows = window(&rows, size.rows.saturating_sub(1));
        // A line that was typed ahead leaves the cursor behind the sign that invites to type.
        let mut text = if self.drawn.is_empty() { format!("{HIDE_CURSOR}\r") } else { self.home(size.columns) };
        for (index, row) in paint(rows, self.colors).iter().enumerate() {
            text.push_str(if index == 0 { "" } else { "\r\n" });
            text.push_str(row);
            text.push_str(CLEAR_LINE);
        }
        text.push_str(CLEAR_BELOW);
        self.drawn = rows.iter().map(|row| row.width).collect();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Takes away what is drawn and shows the cursor where the drawing began.
    pub(super) fn clear(&mut self, columns: usize) -> io::Result<()> {
        if self.drawn.is_empty() {
            return Ok(());
        }
        let text = format!("{}{CLEAR_BELOW}{SHOW_CURSOR}", self.home(columns));
        self.drawn.clear();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Moves from the end of the drawing to its start. A terminal that has become narrower since has broken the rows.
    fn home(&self, columns: usize) -> String {
        let lines = self.drawn.iter().map(|width| width.div_ceil(columns.max(1)).max(1));
        match lines.sum::<usize>().saturating_sub(1) {
            0 => "\r".to_owned(),
            up => format!("\r\x1b[{up}A"),
        }
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if !self.drawn.is_empty() {
            // Whatever went wrong, the next program wants a cursor. A terminal that is gone needs none.
            let _written = write!(self.out, "{RESET}\r\n{SHOW_CURSOR}").and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lower case is plain, upper case fresh, `░` undecided.
    fn cells(text: &str) -> Vec<Cell> {
        let style = |char: char| match char {
            '░' => Style::Undecided,
            char if char.is_uppercase() => Style::Fresh,
            _ => Style::Plain,
        };
        text.chars().map(|char| Cell { char, style: style(char) }).collect()
    }

    fn rows(text: &str, columns: usize) -> Vec<String> {
        paint(&layout(&cells(text), columns), false)
    }

    #[test]
    fn rows_are_as_wide_as_what_they_hold() {
        assert_eq!(rows("", 5), [""]);
        assert_eq!(rows("abcdefg", 3), ["abc", "def", "g"]);
        assert_eq!(rows("abc\nd\n", 3), ["abc", "d", ""]);
        assert_eq!(rows("a你好b", 3), ["a你", "好b"], "two columns each");
        assert_eq!(rows("ab你", 3), ["ab", "你"], "a wide character is not cut");
        assert_eq!(rows("abe\u{301}f", 3), ["abe\u{301}", "f"], "a mark stays with its letter");
        assert_eq!(rows("a\tb", 20), ["a       b"]);
        assert_eq!(rows("a\tb", 4), ["a   ", "b"]);
        assert_eq!(rows("ab你", 0), ["ab", "你"]);
    }

    #[test]
    fn styles_change_where_cells_do() {
        let painted = paint(&layout(&cells("abCD░░e"), 20), true);
        assert_eq!(painted, ["ab\x1b[0m\x1b[1;32mCD\x1b[0m\x1b[2m░░\x1b[0me"]);
        let painted = paint(&layout(&cells("aB\nC"), 20), true);
        assert_eq!(painted, ["a\x1b[0m\x1b[1;32mB\x1b[0m", "\x1b[0m\x1b[1;32mC\x1b[0m"], "no style leaves its row");
    }

    #[test]
    fn the_window_follows_the_work() {
        let all = layout(&cells("a\nb\nc\nd\ne\nf░\n░\n░\n░"), 9);
        let shown = |height| window(&all, height).iter().map(|row| paint_row(row, false)).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(99), "a b c d e f░ ░ ░ ░");
        assert_eq!(shown(3), "e f░ ░");
        assert_eq!(shown(1), "f░");
        assert_eq!(shown(0), "f░");
        let done = layout(&cells("a\nb\nc"), 9);
        assert_eq!(paint(window(&done, 2), false), ["b", "c"]);
    }

    #[test]
    fn a_drawing_covers_the_one_before() {
        let mut out = Vec::new();
        let size = Size { columns: 4, rows: 24 };
        let mut screen = Screen::new(&mut out, false);
        screen.draw(&cells("░░░░"), size).unwrap();
        screen.draw(&cells("ab░"), size).unwrap();
        screen.clear(4).unwrap();
        drop(screen);
        let expected = "\x1b[?25l\r░░░\x1b[K\r\n░\x1b[K\x1b[J\r\x1b[1Aab░\x1b[K\x1b[J\r\x1b[J\x1b[?25h";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_narrower_terminal_has_more_lines_to_go_up() {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, false);
        screen.draw(&cells("abcdefgh"), Size { columns: 9, rows: 24 }).unwrap();
        screen.clear(3).unwrap();
        drop(screen);
        assert!(String::from_utf8(out).unwrap().contains("\r\x1b[2A\x1b[J"));
    }

    #[test]
    fn the_cursor_comes_back_whatever_happens() {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, true);
        screen.draw(&cells("a░"), Size { columns: 9, rows: 24 }).unwrap();
        drop(screen);
        assert!(String::from_utf8(out).unwrap().ends_with(SHOW_CURSOR));
    }
}
