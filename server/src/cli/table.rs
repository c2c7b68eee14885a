//! Plain columns.

/// Prints rows under headings, each column as wide as its widest cell.
pub(super) fn print<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    super::output::out!("{}", layout(head, rows));
}

/// The same as text.
pub(super) fn layout<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut all = vec![head.map(String::from)];
    all.extend(rows);
    let widths: Vec<usize> =
        (0..N).map(|column| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}
