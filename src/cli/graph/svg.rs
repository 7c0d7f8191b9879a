//! The graph as a picture: rows of boxes, curves between them, light and dark.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::layers::{Drawing, Slot};
use super::{Box, Look};

const BOX_HEIGHT: f64 = 44.0;
const ROW_GAP: f64 = 36.0;
const BOX_GAP: f64 = 24.0;
const EDGE_WIDTH: f64 = 12.0;
const MARGIN: f64 = 24.0;
const TITLE: f64 = 40.0;
/// Of a character of the names' font, 13 pixels high.
const CHARACTER: f64 = 7.9;

/// The whole picture.
pub fn svg(title: &str, drawing: &Drawing) -> String {
    let rows = drawing.rows();
    let places = places(drawing, &rows);
    let right = places.values().map(|place| place.x + place.width / 2.0).fold(0.0, f64::max);
    let width = (right + MARGIN).max(2.0 * MARGIN + title.chars().count() as f64 * 9.5);
    let height = TITLE + 12.0 + rows.len() as f64 * (BOX_HEIGHT + ROW_GAP) - ROW_GAP + MARGIN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         role=\"img\" aria-label=\"{0}\">\n<style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"30\">{0}</text>\n",
        escape(title)
    );
    for (edge, (from, to)) in drawing.edges.iter().enumerate() {
        let mut stops = vec![places[&Slot::Box(*from).key()]];
        stops.extend((0..rows.len()).filter_map(|row| places.get(&Slot::Edge(edge).key_in(row))));
        stops.push(places[&Slot::Box(*to).key()]);
        let _ = writeln!(text, "<path class=\"edge\" d=\"{}\"/>", curve(&stops));
    }
    for (at, step) in drawing.boxes.iter().enumerate() {
        text.push_str(&draw(step, places[&Slot::Box(at).key()]));
    }
    text.push_str("</svg>\n");
    text
}

const STYLE: &str = "\
.page{fill:#fff}.box{fill:#f6f8fa;stroke:#57606a}.reads{fill:#fff}.destroys{fill:#ffebe9;stroke:#cf222e;stroke-width:2}\
.asks{fill:#fff8c5;stroke:#9a6700}.finally{stroke-dasharray:5 4}.edge{fill:none;stroke:#6e7781;stroke-width:1.5}\
text{font-family:ui-monospace,'DejaVu Sans Mono',monospace;fill:#1f2328;font-size:13px}.kind{fill:#57606a;font-size:11px}\
.title{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:17px;font-weight:600}.head{fill:#6e7781}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}.box{fill:#161b22;stroke:#8b949e}.reads{fill:#0d1117}\
.destroys{fill:#3c1618;stroke:#f85149}.asks{fill:#332700;stroke:#d29922}text{fill:#e6edf3}.kind{fill:#8b949e}}";

#[derive(Clone, Copy, Debug)]
struct Place {
    /// The middle.
    x: f64,
    /// The upper edge.
    y: f64,
    width: f64,
    height: f64,
}

/// A slot, and the row for those of edges, which pass several.
type Key = (bool, usize, usize);

impl Slot {
    const fn key(self) -> Key {
        self.key_in(0)
    }

    const fn key_in(self, row: usize) -> Key {
        match self {
            Self::Box(at) => (false, at, 0),
            Self::Edge(edge) => (true, edge, row),
        }
    }
}

fn places(drawing: &Drawing, rows: &[Vec<Slot>]) -> HashMap<Key, Place> {
    let size = |slot: Slot| match slot {
        Slot::Box(at) => box_width(&drawing.boxes[at]),
        Slot::Edge(_) => EDGE_WIDTH,
    };
    let length = |row: &[Slot]| row.iter().map(|slot| size(*slot) + BOX_GAP).sum::<f64>() - BOX_GAP;
    let widest = rows.iter().map(|row| length(row)).fold(0.0, f64::max);
    let mut places = HashMap::new();
    for (number, row) in rows.iter().enumerate() {
        let mut x = MARGIN + (widest - length(row)) / 2.0;
        for slot in row {
            let width = size(*slot);
            let y = TITLE + 12.0 + number as f64 * (BOX_HEIGHT + ROW_GAP);
            places.insert(slot.key_in(number), Place { x: x + width / 2.0, y, width, height: BOX_HEIGHT });
            x += width + BOX_GAP;
        }
    }
    places
}

fn box_width(step: &Box) -> f64 {
    let longest = step.id.chars().count().max(step.kind.chars().count() * 11 / 13);
    (longest as f64 * CHARACTER + 28.0).max(96.0)
}

/// A curve from the first stop's lower edge to the last one's upper edge, straight down where it passes a row.
fn curve(stops: &[Place]) -> String {
    let mut text = String::new();
    for (at, pair) in stops.windows(2).enumerate() {
        let (from, to) = (pair[0], pair[1]);
        let (start, end) = (from.y + from.height, to.y - if at + 2 == stops.len() { 1.0 } else { 0.0 });
        // More than half: it leaves and arrives upright.
        let bend = (end - start) * 0.65;
        if at == 0 {
            let _ = write!(text, "M{:.1} {start:.1}", from.x);
        } else {
            let _ = write!(text, "V{start:.1}");
        }
        let _ =
            write!(text, "C{:.1} {:.1} {:.1} {:.1} {:.1} {end:.1}", from.x, start + bend, to.x, end - bend, to.x);
    }
    // The head of the arrow, as part of the path: markers are drawn by few converters.
    let _ = write!(text, "m-4 -6l4 6l4 -6");
    text
}

fn draw(step: &Box, place: Place) -> String {
    let look = match step.look {
        Look::Reads => " reads",
        Look::Changes => "",
        Look::Destroys => " destroys",
        Look::Asks => " asks",
    };
    let finally = if step.finally { " finally" } else { "" };
    let left = place.x - place.width / 2.0;
    format!(
        "<rect class=\"box{look}{finally}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"8\"/>\n\
         <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
         <text class=\"kind\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
        place.y,
        place.width,
        place.height,
        place.y + 19.0,
        escape(&step.id),
        place.y + 34.0,
        escape(&step.kind),
        x = place.x,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::drawing;

    #[test]
    fn a_picture() {
        let svg = super::svg("Swap <a> & b", &drawing());
        // To look at: rsvg-convert, or any browser.
        if let Ok(path) = std::env::var("LIFEBOAT_TEST_SVG") {
            std::fs::write(path, &svg).unwrap();
        }
        assert!(svg.contains("Swap &lt;a&gt; &amp; b"));
        assert_eq!(svg.matches("<path").count(), drawing().edges.len());
        assert_eq!(svg.matches("<rect class=\"box").count(), drawing().boxes.len());
    }
}
