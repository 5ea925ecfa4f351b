// Curves over time, and percentiles by group.

import { byId, el, keyed, say, shown } from "./dom.js";
import { clock, count, duration, joules, percent, rough } from "./format.js";
import { Curves } from "./plot.js";

const MULTIPLES = [
  ["Time to first token, online", ["p50", "p99"], duration, (p) => [p.ttft_p50_s, p.ttft_p99_s]],
  ["Latency, all requests", ["p50", "p99"], duration, (p) => [p.latency_p50_s, p.latency_p99_s]],
  ["Requests", ["online waiting", "offline waiting", "running"], count, (p) => [p.waiting_online, p.waiting_offline, p.running]],
  ["Output tokens per second", ["tokens/s"], count, (p) => [p.tokens_per_s]],
  ["KV memory in use, by the engines", ["share"], percent, (p) => [p.kv_usage], 1],
  ["Power", ["watts"], (w) => `${count(w)} W`, (p) => [p.power_w]],
];

const axisOf = (tell) => (tell === duration ? (s) => (s === 0 ? "0" : s < 1 ? `${Math.round(s * 1000)} ms` : `${rough(s)} s`) : tell === percent ? percent : rough);

/** Small plots, each of one thing over the last hour. */
export class History {
  constructor() {
    this.multiples = MULTIPLES.map(([title, names, tell, pick, top]) => {
      const values = names.map(() => el("span"));
      const when = el("span");
      const key = el("div", { class: "key" }, ...names.map((name, i) => el("span", {}, el("span", { class: `series series-${i + 1}` }, name), " ", values[i])), when);
      const place = el("div", { class: "plot" });
      const block = el("div", { class: "multiple" }, el("h3", {}, title), key, place);
      byId("curves").append(block);
      const curves = new Curves(place, title, names, tell, axisOf(tell), top, (unixS, texts, pointed) => {
        texts.forEach((text, i) => say(values[i], text));
        say(when, pointed ? `at ${clock(unixS)}` : "");
      });
      return { block, curves, pick };
    });
  }

  /** Show that of a snapshot. */
  show({ history }) {
    say(byId("latency-note"), history.length ? "percentiles of the minute before each point" : "nothing has been kept yet");
    for (const { block, curves, pick } of this.multiples) {
      const points = history.map((point) => [point.unix_s, ...pick(point)]);
      const has = points.some((point) => point.slice(1).some((value) => value !== null));
      shown(block, has);
      if (has) curves.show(points);
    }
  }
}

const MEASURES = [
  ["ttft_s", "time to first token"],
  ["latency_s", "latency"],
  ["per_token_latency_s", "latency per token"],
  ["queue_s", "in the queue"],
];
const STEPS = ["p50", "p90", "p99"];

/** The table of percentiles. */
export class Percentiles {
  constructor() {
    this.snapshot = null;
    const first = [el("th", { rowspan: 2, scope: "col" }, "group"), el("th", { rowspan: 2, scope: "col", class: "number" }, "requests"), el("th", { rowspan: 2, scope: "col", class: "number" }, "output tokens"), el("th", { rowspan: 2, scope: "col", class: "number" }, "energy")];
    const second = MEASURES.flatMap(() => STEPS.map((step, i) => el("th", { scope: "col", class: i ? "number" : "number group" }, step)));
    byId("percentile-head").append(
      el("tr", {}, ...first, ...MEASURES.map(([, title]) => el("th", { colspan: 3, scope: "colgroup", class: "group" }, title))),
      el("tr", {}, ...second),
    );
    for (const id of ["percentile-window", "percentile-by"]) byId(id).addEventListener("change", () => this.show(this.snapshot));
  }

  /** Show those of a snapshot. */
  show(snapshot) {
    if (snapshot === null) return;
    this.snapshot = snapshot;
    const windowS = Number(byId("percentile-window").value);
    const by = byId("percentile-by").value;
    const views = snapshot.latencies.filter((view) => view.window_s === windowS && (view.by === by || view.by === "all") && view.requests > 0);
    const metered = snapshot.energy.sources.length > 0;
    keyed(byId("percentile-rows"), views, (view) => `${view.by} ${view.name}`,
      (view) => {
        const cells = Array.from({ length: 3 + MEASURES.length * 3 }, (_, i) => el("td", { class: i >= 3 && i % 3 === 0 ? "number group" : "number" }));
        const row = el("tr", {}, el("th", { scope: "row" }, view.by === "all" ? "all" : view.name), ...cells);
        row.cells_ = cells;
        return row;
      },
      (row, view) => {
        const measured = MEASURES.flatMap(([name]) => STEPS.map((step) => (view.measures[name]?.count ? duration(view.measures[name][step]) : "–")));
        const told = [count(view.requests), count(view.output_tokens), metered ? joules(view.energy_joules) : "–", ...measured];
        told.forEach((text, i) => say(row.cells_[i], text));
      });
    shown(byId("percentile-empty"), !views.length);
    say(byId("percentile-empty"), "No request has finished in that time.");
    shown(byId("percentile-head").parentElement, views.length > 0);
  }
}
