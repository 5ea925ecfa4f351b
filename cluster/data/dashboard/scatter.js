// Forecasts against answers, both axes logarithmic, on a canvas because there are many points.

import { byId, facts, say, shown } from "./dom.js";
import { count, percent, rough } from "./format.js";

const EDGE = { left: 46, right: 10, top: 10, bottom: 38 };
const QUIET = "On the dashed diagonal an answer is as long as forecast. A vertical line is a forecast's interval. A red point lies outside it; a ring is an answer that its cap ended.";

/** The plot and the figures above it. */
export class Scatter {
  constructor() {
    this.place = byId("scatter");
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.place.append(this.canvas);
    this.points = [];
    this.near = null;
    new ResizeObserver(() => this.paint()).observe(this.place);
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX, event.offsetY));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
  }

  /** Show those of a snapshot. */
  show({ forecasts, coverage, rank_correlation: tau, status, summary }) {
    this.points = forecasts;
    facts(byId("forecast-facts"), [
      ["answers inside their interval", coverage === null ? "–" : percent(coverage), "coverage"],
      ["order told right", tau === null ? "–" : percent((1 + tau) / 2), tau === null ? "" : `of pairs; Kendall's tau ${tau.toFixed(2)}`],
    ]);
    say(byId("forecast-note"), status.predictor);
    const empty = !forecasts.length;
    shown(byId("forecast-empty"), empty);
    shown(this.place, !empty);
    shown(byId("scatter-readout"), !empty);
    say(byId("forecast-empty"), "No request has finished yet: nothing can be said of the forecasts.");
    this.canvas.setAttribute("aria-label", `Forecast and actual length of the last ${count(forecasts.length)} answers. ${summary.forecasts.text}`);
    this.paint();
  }

  point(x, y) {
    const near = x === null ? null : this.nearest(x, y);
    if (near === this.near) return;
    this.near = near;
    this.paint();
    const end = near?.censored ? "ended by its cap at" : "came to";
    say(byId("scatter-readout"), near === null ? QUIET : `Forecast ${count(near.median)} tokens (${count(near.lower)} to ${count(near.upper)}); the answer ${end} ${count(near.actual)}.`);
  }

  nearest(x, y) {
    let found = null;
    let least = 24 ** 2;
    for (const point of this.points) {
      const distance = (this.x(point.median) - x) ** 2 + (this.y(point.actual) - y) ** 2;
      if (distance < least) [found, least] = [point, distance];
    }
    return found;
  }

  /** Draw anew, for another size or other colours. */
  paint() {
    const { clientWidth: width, clientHeight: height } = this.place;
    if (!width || !this.points.length) return;
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    this.axes(pen, width, height, colour);
    for (const point of this.points) this.interval(pen, point, colour("line"), 1);
    pen.globalAlpha = 0.75;
    for (const point of this.points) this.dot(pen, point, colour);
    pen.globalAlpha = 1;
    if (this.near) {
      this.interval(pen, this.near, colour("ink"), 2);
      this.dot(pen, this.near, colour, 5);
    }
  }

  axes(pen, width, height, colour) {
    const most = Math.max(10, ...this.points.flatMap((point) => [point.median, point.actual]));
    const top = Math.log10(most * 1.25);
    const span = [width - EDGE.left - EDGE.right, height - EDGE.top - EDGE.bottom];
    this.x = (tokens) => EDGE.left + (span[0] * Math.log10(Math.max(tokens, 1))) / top;
    this.y = (tokens) => height - EDGE.bottom - (span[1] * Math.log10(Math.max(tokens, 1))) / top;
    this.floor = height - EDGE.bottom;
    this.ceiling = EDGE.top;
    pen.font = "11.5px system-ui, sans-serif";
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("soft");
    pen.lineWidth = 1;
    for (let power = 0; power <= top; power++) {
      const x = Math.round(this.x(10 ** power)) + 0.5;
      const y = Math.round(this.y(10 ** power)) + 0.5;
      line(pen, x, this.ceiling, x, this.floor);
      line(pen, EDGE.left, y, width - EDGE.right, y);
      pen.textAlign = "center";
      pen.fillText(rough(10 ** power), x, this.floor + 15);
      pen.textAlign = "right";
      pen.fillText(rough(10 ** power), EDGE.left - 6, y + 4);
    }
    pen.textAlign = "right";
    pen.fillText("forecast (median), tokens", width - EDGE.right, height - 6);
    pen.save();
    pen.translate(12, EDGE.top);
    pen.rotate(-Math.PI / 2);
    pen.fillText("answer, tokens", 0, 0);
    pen.restore();
    pen.strokeStyle = colour("ink");
    pen.setLineDash([5, 3]);
    line(pen, this.x(1), this.y(1), this.x(10 ** top), this.y(10 ** top));
    pen.setLineDash([]);
  }

  interval(pen, point, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    const x = this.x(point.median);
    line(pen, x, this.y(point.lower), x, Math.max(this.y(point.upper), this.ceiling));
  }

  dot(pen, point, colour, radius = 2.6) {
    const inside = point.lower <= point.actual && point.actual <= point.upper;
    pen.beginPath();
    pen.arc(this.x(point.median), this.y(point.actual), radius, 0, 2 * Math.PI);
    if (point.censored) {
      pen.strokeStyle = colour("used");
      pen.lineWidth = 1.4;
      pen.stroke();
    } else {
      pen.fillStyle = colour(inside ? "used" : "bad");
      pen.fill();
    }
  }
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}
