// Plots of a few curves in SVG, drawn for the width there is.

import { svg } from "./dom.js";

/** Values at which an axis from 0 to `top` has its lines: about `lines` of them, round ones. */
export function ticks(top, lines = 3) {
  const raw = top / lines;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let value = 0; value <= top * 1.0001; value += step) found.push(value);
  return found;
}

/** An SVG `path` through points; null breaks it. */
export function path(points) {
  let drawn = "";
  let pen = "M";
  for (const point of points) {
    if (point === null) {
      pen = "M";
      continue;
    }
    drawn += `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    pen = "L";
  }
  return drawn;
}

/** Redraws when its place changes its size; `draw(width, height)` gives elements. */
export class Plot {
  constructor(place, label) {
    this.place = place;
    this.root = svg("svg", { role: "img", "aria-label": label });
    place.append(this.root);
    this.draw = null;
    new ResizeObserver(() => this.paint()).observe(place);
  }

  /** Draw by a function from now on; `label` says the picture in words. */
  show(draw, label) {
    this.draw = draw;
    this.root.setAttribute("aria-label", label);
    this.paint();
  }

  paint() {
    const { clientWidth: width, clientHeight: height } = this.place;
    if (!this.draw || !width) return;
    this.root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.root.replaceChildren(...this.draw(width, height));
  }
}

/** Curves over time, with a line under the pointer that tells the values there. */
export class Curves {
  /**
   * `names` of the series; `tell(value)` and `axis(value)` write a value; `top` of the axis, if it is fixed;
   * `readout(unixS, texts, pointed)` gets what to tell.
   */
  constructor(place, label, names, tell, axis, top, readout) {
    Object.assign(this, { label, names, tell, axis, top, readout, points: [], at: null });
    this.plot = new Plot(place, label);
    place.addEventListener("pointermove", (event) => this.point(event.offsetX));
    place.addEventListener("pointerleave", () => this.point(null));
  }

  /** Show points: `[unixS, value, ...]` with a value per series, null where there is none. */
  show(points) {
    this.points = points;
    const last = points.at(-1);
    const now = last ? this.names.map((name, i) => `${name} ${this.told(last[i + 1])}`).join(", ") : "no values";
    this.plot.show((width, height) => this.draw(width, height), `${this.label}: now ${now}`);
    this.tellAt();
  }

  told(value) {
    return value === null ? "–" : this.tell(value);
  }

  point(x) {
    this.at = x;
    this.plot.paint();
    this.tellAt();
  }

  index() {
    if (this.at === null || !this.x) return this.points.length - 1;
    let best = 0;
    this.points.forEach((point, i) => {
      if (Math.abs(this.x(point[0]) - this.at) < Math.abs(this.x(this.points[best][0]) - this.at)) best = i;
    });
    return best;
  }

  tellAt() {
    const point = this.points[this.index()];
    if (point) this.readout(point[0], point.slice(1).map((value) => this.told(value)), this.at !== null);
  }

  draw(width, height) {
    const left = 46;
    const bottom = height - 18;
    const values = this.points.flatMap((point) => point.slice(1)).filter((value) => value !== null);
    const most = Math.max(...values, 1e-9);
    const top = most > (this.top ?? 0) ? most * 1.08 : this.top;
    const from = this.points[0]?.[0] ?? 0;
    const till = this.points.at(-1)?.[0] ?? 1;
    this.x = (unixS) => left + ((unixS - from) / Math.max(till - from, 1)) * (width - left - 6);
    const y = (value) => bottom - (value / top) * (bottom - 8);
    const drawn = [];
    for (const value of ticks(top, 2)) {
      drawn.push(svg("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
      drawn.push(svg("text", { class: "axis", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, this.axis(value)));
    }
    drawn.push(svg("text", { class: "axis", x: left, y: height - 3 }, ago(till - from)));
    drawn.push(svg("text", { class: "axis", x: width - 4, y: height - 3, "text-anchor": "end" }, "now"));
    this.names.forEach((_, i) => {
      const line = this.points.map((p) => (p[i + 1] === null ? null : [this.x(p[0]), y(p[i + 1])]));
      drawn.push(svg("path", { class: `curve series-${i + 1}`, d: path(line) }));
      line.forEach((p, at) => {
        if (p && !line[at - 1] && !line[at + 1]) drawn.push(svg("circle", { class: `curve series-${i + 1}`, cx: p[0], cy: p[1], r: 2 }));
      });
    });
    if (this.at !== null && this.points.length) {
      const x = this.x(this.points[this.index()][0]);
      drawn.push(svg("line", { class: "cursor", x1: x, x2: x, y1: 4, y2: bottom }));
    }
    return drawn;
  }
}

function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  return `${Math.round(seconds / 60)} min ago`;
}
