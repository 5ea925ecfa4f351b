// The replicas: a row each, and the memory ahead of one of them.

import { byId, el, keyed, say, set, shown, style, svg } from "./dom.js";
import { count, duration, figure, percent, rough, some } from "./format.js";
import { Plot, path, ticks } from "./plot.js";

const FEW = 80; // rows up to which all exist
const NEAR = 12; // else as many above and below those in sight

const REASONS = {
  memory: ["no: KV memory", "busy"],
  slots: ["no: slots", "busy"],
  slow: ["no: slow", "bad"],
  draining: ["no: leaving", "busy"],
  "too large": ["no: too large", "busy"],
  reserved: ["no: reserved", "busy"],
  "online only": ["online only", "busy"],
};
const STATES = { failed: "bad", lost: "bad" };

/** The greatest number of projected blocks and the step at which they are reached. */
function peak(view) {
  const { steps, blocks } = view.projection;
  let at = 0;
  blocks.forEach((value, i) => {
    if (value > blocks[at]) at = i;
  });
  const used = view.status.used_blocks;
  return blocks.length && blocks[at] > used ? [blocks[at], steps[at]] : [used, 0];
}

function verdict(view) {
  const { state } = view.status;
  if (state !== "ready") return [state, STATES[state] ?? ""];
  return REASONS[view.bottleneck] ?? (view.bottleneck ? [`no: ${view.bottleneck}`, "busy"] : ["yes", "good"]);
}

/** The table of replicas and the large plot beside it. */
export class Replicas {
  /** `all()` is called when somebody wants to see every replica. */
  constructor(all) {
    this.body = byId("replica-rows");
    this.selected = null;
    this.order = byId("replicas-order");
    this.plot = new Plot(byId("detail-plot"), "projected memory");
    this.snapshot = null;
    this.more = byId("replicas-all");
    this.more.addEventListener("click", all);
    this.box = this.body.closest(".rows");
    [this.above, this.below] = ["beforebegin", "afterend"].map((where) => {
      const room = el("td", { colspan: 7 });
      this.body.insertAdjacentElement(where, el("tbody", { class: "spacer", "aria-hidden": "true" }, el("tr", {}, room)));
      return room;
    });
    this.box.addEventListener("scroll", () => requestAnimationFrame(() => this.show(this.snapshot)));
    this.order.addEventListener("change", () => this.show(this.snapshot));
  }

  /** Show those of a snapshot. */
  show(snapshot) {
    if (snapshot === null) return;
    this.snapshot = snapshot;
    const views = [...snapshot.replicas];
    if (this.order.value === "name") {
      views.sort((a, b) => a.status.replica_id.localeCompare(b.status.replica_id, "en", { numeric: true }));
    }
    const ready = snapshot.replicas.filter((view) => view.status.state === "ready").length;
    const all = snapshot.replica_count;
    const part = views.length < all;
    say(byId("replicas-note"), part ? `the ${count(views.length)} fullest of ${count(all)}` : `${some(all, "replica")}, ${count(ready)} ready`);
    set(this.body.parentElement, "aria-rowcount", all + 1);
    shown(this.more, part);
    say(this.more, `Show all ${count(all)}`);
    shown(byId("replicas-empty"), !all);
    say(byId("replicas-empty"), "There are no replicas: `tiebreak scale N` starts some.");
    this.chosen = views.find((view) => view.status.replica_id === this.selected) ?? snapshot.replicas.find((view) => view.status.state === "ready");
    keyed(this.body, this.inSight(views), (view) => view.status.replica_id, (view) => this.row(view), (row, view) => this.update(row, view));
    shown(byId("detail"), this.chosen !== undefined);
    if (this.chosen !== undefined) this.detail(this.chosen);
  }

  /** Those in sight and around, with room for the others: there may be thousands. */
  inSight(views) {
    const height = this.body.firstElementChild?.offsetHeight || 50;
    const first = views.length > FEW ? Math.max(0, Math.floor(this.box.scrollTop / height) - NEAR) : 0;
    const last = views.length > FEW ? first + Math.ceil(this.box.clientHeight / height) + 2 * NEAR : views.length;
    style(this.above, "height", `${first * height}px`);
    style(this.below, "height", `${Math.max(0, views.length - last) * height}px`);
    return views.slice(first, last);
  }

  row(view) {
    const id = view.status.replica_id;
    const select = () => {
      this.selected = id;
      this.show(this.snapshot);
    };
    const p = {
      where: el("div", { class: "where" }), chip: el("span", { class: "chip" }), error: el("div", { class: "where" }),
      used: el("i", { class: "used" }), rise: el("i", { class: "rise" }), figures: el("div", { class: "figures" }),
      line: svg("path", { class: "edge" }), area: svg("path", { class: "area" }), limit: svg("line", { class: "limit", x1: 0, x2: 110 }),
      slots: el("span"), speed: el("span"), told: el("span"),
    };
    p.bar = el("div", { class: "bar" }, p.rise, p.used);
    p.spark = svg("svg", { class: "spark", viewBox: "0 0 110 30", "aria-hidden": "true" }, p.area, p.line, p.limit);
    p.name = el("button", { type: "button", class: "link name", onclick: select }, id);
    const cell = (name, ...children) => el("td", { role: "cell", class: name }, ...children);
    const number = (label, child, name = "") => el("td", { role: "cell", class: `number ${name}`, "data-label": label }, child);
    const row = el("tr", { role: "row", onclick: select },
      cell("", p.name, p.where), cell("", p.chip, p.error), cell("memory", p.bar, p.figures), cell("next", p.spark),
      number("slots", p.slots), number("tokens/s", p.speed), number("report", p.told, "told"));
    row.parts = p;
    return row;
  }

  update(row, view) {
    const { parts: p } = row;
    const { status } = view;
    const chosen = view === this.chosen;
    set(row, "aria-current", chosen);
    set(p.name, "aria-pressed", chosen);
    const [word, level] = verdict(view);
    say(p.chip, word);
    set(p.chip, "class", `chip ${level}`);
    say(p.error, status.error);
    const devices = status.gpus.length ? ` GPU ${status.gpus.join(", ")}` : status.cores.length ? ` cores ${status.cores.join(", ")}` : "";
    say(p.where, `${status.node}${devices}`);
    const capacity = Math.max(status.kv_blocks, 1);
    const [most, step] = peak(view);
    style(p.used, "width", `${Math.min(100, (100 * status.used_blocks) / capacity)}%`);
    style(p.rise, "width", `${Math.min(100, (100 * most) / capacity)}%`);
    p.bar.classList.toggle("over", most > capacity);
    const ahead = most > status.used_blocks ? `, ${count(most)} in ${some(step, "step")}` : "";
    say(p.figures, status.kv_blocks ? `${count(status.used_blocks)} of ${count(status.kv_blocks)}${ahead}` : "not known yet");
    this.spark(p, view, capacity, most);
    say(p.slots, status.slots ? `${count(status.running)} of ${count(status.slots)}` : "–");
    say(p.speed, status.state === "ready" ? figure(view.tokens_per_s) : "–");
    say(p.told, view.report_age_s === null ? "never" : `${duration(view.report_age_s)} ago`);
  }

  spark(p, view, capacity, most) {
    const { steps, blocks } = view.projection;
    const top = Math.max(capacity, most) * 1.05;
    const last = Math.max(steps.at(-1) ?? 0, 1);
    const points = steps.map((step, i) => [(110 * step) / last, 30 - (30 * blocks[i]) / top]);
    const y = (30 - (30 * capacity) / top).toFixed(1);
    set(p.line, "d", path(points));
    set(p.area, "d", points.length ? `${path(points)}L110 30L0 30Z` : "");
    set(p.limit, "y1", y);
    set(p.limit, "y2", y);
    p.spark.classList.toggle("over", most > capacity);
  }

  detail(view) {
    const { status, projection } = view;
    const [most, step] = peak(view);
    const share = percent(most / Math.max(status.kv_blocks, 1));
    const words = most > status.used_blocks
      ? `KV memory peaks at ${count(most)} of ${count(status.kv_blocks)} blocks (${share}) in ${some(step, "step")}`
      : `KV memory is at its peak: ${count(most)} of ${count(status.kv_blocks)} blocks (${share})`;
    say(byId("detail-name"), status.replica_id);
    say(byId("detail-note"), words);
    this.plot.show((width, height) => drawn(width, height, status, projection, most, step), `${status.replica_id}: ${words}`);
  }
}

function drawn(width, height, status, { steps, blocks }, most, step) {
  const left = 44;
  const bottom = height - 20;
  const top = Math.max(status.kv_blocks, most, 1) * 1.12;
  const last = Math.max(steps.at(-1) ?? 0, 10);
  const x = (value) => left + (value / last) * (width - left - 8);
  const y = (value) => bottom - (value / top) * (bottom - 4);
  const all = [];
  for (const value of ticks(top, 3)) {
    all.push(svg("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
    all.push(svg("text", { class: "axis", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, rough(value)));
  }
  const points = steps.map((value, i) => [x(value), y(blocks[i])]);
  const line = path(points);
  const group = svg("g", { class: most > status.kv_blocks ? "over" : "" });
  if (points.length) group.append(svg("path", { class: "area", d: `${line}L${points.at(-1)[0]} ${bottom}L${left} ${bottom}Z` }), svg("path", { class: "edge", d: line }));
  all.push(group, svg("line", { class: "limit", x1: left, x2: width, y1: y(status.kv_blocks), y2: y(status.kv_blocks) }));
  all.push(svg("text", { class: "label halo", x: width - 6, y: y(status.kv_blocks) - 6, "text-anchor": "end" }, `capacity ${count(status.kv_blocks)}`));
  const right = x(step) > width - 90;
  if (most > 0) {
    all.push(svg("circle", { class: "mark", cx: x(step), cy: y(most), r: 4 }));
    all.push(svg("text", { class: "label halo", x: x(step) + (right ? -8 : 8), y: y(most) + 18, "text-anchor": right ? "end" : "start" }, count(most)));
  }
  for (const value of ticks(last, 3).filter((value) => Number.isInteger(value))) {
    const end = x(value) > width - 60;
    all.push(svg("text", { class: "axis", x: x(value), y: height - 4, "text-anchor": value === 0 ? "start" : end ? "end" : "middle" }, value === 0 ? "now" : `${count(value)} steps`));
  }
  return all;
}
