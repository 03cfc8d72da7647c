//! Plots as SVG that a page's style sheet colours.

use std::fmt::Write as _;

use super::axis::Axis;

/// A plot: two axes and what is drawn between them.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: &'static str,
    /// To the right.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// One over the other.
    pub marks: Vec<Mark>,
}

/// Something drawn, in the numbers of the axes. `ink` names its colour in the style sheet.
#[derive(Clone, Debug)]
pub enum Mark {
    /// Points joined.
    Line {
        /// (x, y)
        points: Vec<(f64, f64)>,
        /// Its colour.
        ink: &'static str,
        /// In the legend; none if empty.
        name: &'static str,
    },
    /// Steps with what is below them filled: each y holds from its x to the next.
    Steps {
        /// (x, y)
        points: Vec<(f64, f64)>,
        /// Its colour.
        ink: &'static str,
    },
    /// Points apart.
    Dots {
        /// (x, y)
        points: Vec<(f64, f64)>,
        /// Their colour.
        ink: &'static str,
        /// In the legend; none if empty.
        name: &'static str,
    },
    /// From left to right at this height.
    Limit {
        /// Where.
        y: f64,
        /// Beside it.
        name: String,
    },
    /// All above these x.
    Band {
        /// From here.
        from: f64,
        /// To here.
        to: f64,
        /// Inside it.
        name: &'static str,
    },
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 42.0;

impl Plot {
    /// The whole figure.
    pub fn svg(&self) -> String {
        let mut svg = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            self.title, self.title
        );
        // What lies outside the axes is cut off by an inner picture of their size.
        let (inner_width, inner_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let bands = self.marks.iter().filter(|mark| matches!(mark, Mark::Band { .. }));
        let others = self.marks.iter().filter(|mark| !matches!(mark, Mark::Band { .. }));
        bands.for_each(|mark| self.mark(&mut svg, mark));
        self.grid(&mut svg);
        others.for_each(|mark| self.mark(&mut svg, mark));
        let _ = writeln!(
            svg,
            "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{inner_width}\" height=\"{inner_height}\"/>"
        );
        self.legend(&mut svg);
        svg.push_str("</svg></figure>\n");
        svg
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let inside = |place: f64| place.clamp(0.0, 1.0);
        (
            LEFT + inside(self.x.place(x)) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - inside(self.y.place(y)) * (HEIGHT - TOP - BOTTOM),
        )
    }

    fn grid(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, text) in self.x.ticks() {
            let (x, _) = self.at((value, self.y.from));
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/><text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 15.0
            );
        }
        for (value, text) in self.y.ticks() {
            let (_, y) = self.at((self.x.from, value));
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                y + 3.5
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text class=\"label\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 8.0,
            self.x.label,
            TOP - 10.0,
            self.y.label
        );
    }

    fn mark(&self, svg: &mut String, mark: &Mark) {
        let _ = match mark {
            Mark::Line { points, ink, .. } => {
                writeln!(svg, "<path class=\"line {ink}\" d=\"{}\"/>", self.path(points))
            }
            Mark::Steps { points, ink } => {
                let steps = steps(points);
                let ends = steps.first().zip(steps.last());
                let base = ends.map_or(String::new(), |(first, last)| {
                    let ((left, bottom), (right, _)) =
                        (self.at((first.0, self.y.from)), self.at((last.0, 0.0)));
                    format!("L{right:.1} {bottom:.1}L{left:.1} {bottom:.1}Z")
                });
                let path = self.path(&steps);
                writeln!(
                    svg,
                    "<path class=\"area {ink}\" d=\"{path}{base}\"/><path class=\"line {ink}\" d=\"{path}\"/>"
                )
            }
            Mark::Dots { points, ink, .. } => {
                let _ = write!(svg, "<g class=\"dots {ink}\">");
                for &point in points {
                    let (x, y) = self.at(point);
                    let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>");
                }
                writeln!(svg, "</g>")
            }
            Mark::Limit { y, name } => {
                let (_, place) = self.at((self.x.from, *y));
                writeln!(
                    svg,
                    "<path class=\"limit\" d=\"M{LEFT} {place:.1}H{}\"/><text class=\"limit\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                    WIDTH - RIGHT,
                    WIDTH - RIGHT - 6.0,
                    place - 4.0
                )
            }
            Mark::Band { from, to, name } => {
                let ((left, _), (right, _)) = (self.at((*from, 0.0)), self.at((*to, 0.0)));
                writeln!(
                    svg,
                    "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"><title>{name}</title></rect>",
                    (right - left).max(0.0),
                    HEIGHT - TOP - BOTTOM
                )
            }
        };
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (index, &point) in points.iter().enumerate() {
            let (x, y) = self.at(point);
            let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
        }
        path
    }

    /// Right above the axes, from the right.
    fn legend(&self, svg: &mut String) {
        let names = self.marks.iter().filter_map(|mark| match mark {
            Mark::Line { name, ink, .. } | Mark::Dots { name, ink, .. } if !name.is_empty() => {
                Some((*name, *ink))
            }
            Mark::Band { name, .. } if !name.is_empty() => Some((*name, "band")),
            _ => None,
        });
        let mut right = WIDTH - RIGHT;
        for (name, ink) in names.collect::<Vec<_>>().into_iter().rev() {
            let width = 6.2 * name.len() as f64;
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text><rect class=\"key {ink}\" x=\"{:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" rx=\"2\"/>",
                TOP - 10.0,
                right - width - 15.0,
                TOP - 19.0
            );
            right -= width + 28.0;
        }
    }
}

fn steps(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut steps = Vec::with_capacity(points.len() * 2);
    for pair in points.windows(2) {
        if let [(x, y), (next, _)] = *pair {
            steps.push((x, y));
            steps.push((next, y));
        }
    }
    steps.extend(points.last());
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_within_the_axes() {
        let plot = Plot {
            title: "Title",
            x: Axis::time("s", 10.0),
            y: Axis::linear("ms", 100.0),
            marks: vec![
                Mark::Line { points: vec![(0.0, 0.0), (10.0, 100.0), (99.0, -5.0)], ink: "one", name: "p50" },
                Mark::Band { from: 0.0, to: 5.0, name: "warm-up" },
                Mark::Limit { y: 50.0, name: "promised".to_owned() },
            ],
        };
        let svg = plot.svg();
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let line = format!("M{LEFT:.1} {bottom:.1}L{right:.1} {TOP:.1}L{right:.1} {bottom:.1}");
        assert!(svg.contains(&line), "{svg}");
        assert!(svg.find("class=\"band\"") < svg.find("class=\"grid\""), "a band lies below the rest");
        for text in [">Title<", ">p50<", ">warm-up<", ">promised<", ">100<", ">10<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }

    #[test]
    fn steps_hold_to_the_next() {
        assert_eq!(steps(&[(0.0, 1.0), (1.0, 3.0)]), [(0.0, 1.0), (1.0, 1.0), (1.0, 3.0)]);
        assert!(steps(&[]).is_empty());
    }
}
