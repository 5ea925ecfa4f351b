// Everything that is known of one request, in a dialog that stays up to date.

import { byId, el, facts, say, svg } from "./dom.js";
import { clock, count, duration, fine, joules, meter } from "./format.js";
import { keyHeader, refusal } from "./stream.js";

const AGAIN_MS = 2000;
const VERDICTS = { fits: "good", memory: "busy", slots: "busy", "online only": "busy", slow: "bad", "too large": "bad" };

/** Asks for a request's explanation and shows it; `isPaused` says whether to keep it still. */
export class Why {
  constructor(isPaused) {
    this.isPaused = isPaused;
    this.dialog = byId("why");
    this.id = null;
    this.timer = 0;
    byId("why-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => this.closed());
    window.addEventListener("hashchange", () => this.fromAddress());
  }

  /** Show the request that the page's address names, if any. */
  fromAddress() {
    const [, name, id] = /^#(\w+)=(.+)$/.exec(location.hash) ?? [];
    if (name === "request") this.open(decodeURIComponent(id));
    else if (this.dialog.open) this.dialog.close();
  }

  /** Show a request, and name it in the address, so that it can be passed on. */
  ask(id) {
    const hash = `#request=${encodeURIComponent(id)}`;
    if (location.hash === hash) this.open(id);
    else location.hash = hash;
  }

  open(id) {
    this.id = id;
    say(byId("why-title"), id);
    byId("why-body").replaceChildren(el("p", { class: "note" }, "Asking…"));
    if (!this.dialog.open) this.dialog.showModal();
    this.refresh(id);
  }

  closed() {
    this.id = null;
    clearTimeout(this.timer);
    if (location.hash.startsWith("#request=")) history.replaceState(null, "", location.pathname + location.search);
  }

  async refresh(id) {
    clearTimeout(this.timer);
    let goesOn = true;
    let content;
    try {
      const answer = await fetch(`tiebreak/requests/${encodeURIComponent(id)}`, { headers: keyHeader(), cache: "no-store" });
      if (answer.ok) {
        const told = await answer.json();
        goesOn = told.state !== "finished";
        content = explained(told);
      } else {
        goesOn = answer.status >= 500;
        content = [el("p", { class: "reason" }, await refusal(answer))];
      }
    } catch {
      content = [el("p", { class: "reason" }, "The endpoint cannot be reached; trying again.")];
    }
    if (this.id !== id) return;
    const still = !goesOn ? "" : this.isPaused() ? "; the page is paused, and so is this" : "; follows every two seconds";
    byId("why-body").replaceChildren(el("p", { class: "note asof" }, `As of ${clock(Date.now() / 1000)}${still}`), ...content);
    if (goesOn && !this.isPaused()) this.timer = setTimeout(() => this.refresh(id), AGAIN_MS);
  }
}

function explained(told) {
  const list = el("dl", { class: "facts" });
  const metered = told.energy_joules !== null;
  facts(list, [
    ["state", told.state, told.position === null ? "" : `place ${told.position_is_exact ? "" : "about "}${count(told.position)}`],
    ["class", told.request_class],
    ["tenant", told.tenant],
    ...(told.job ? [["job", told.job]] : []),
    ["prompt", `${count(told.prompt_tokens)} tokens`],
    ["answer", `${count(told.output_tokens)} tokens`, `of at most ${count(told.max_tokens)}`],
    ["score", told.key === null ? "–" : fine(told.key), "of the ordering; smaller goes first"],
    ["replica", told.replica_id || "–"],
    ["evictions", count(told.evictions), told.recomputed_tokens ? `${count(told.recomputed_tokens)} tokens computed again` : ""],
    ["energy", joules(told.energy_joules), metered ? `${joules(told.wasted_joules)} of it again; ${meter(told.energy_source)}` : "not known"],
  ]);
  return [
    el("p", { class: "reason" }, told.reason),
    ...(told.waited ? [el("p", { class: "reason waited" }, told.waited)] : []),
    list,
    ...(told.forecast ? [el("h3", {}, "Forecast of its answer's length"), ruler(told)] : []),
    ...(told.candidates.length ? candidates(told) : []),
    el("h3", {}, "What happened"),
    timeline(told.events),
  ];
}

/** The forecast on a logarithmic line of tokens, with what exists already and the cap. */
function ruler({ forecast, output_tokens: output, max_tokens: cap }) {
  const middle = Math.max(1, Math.round(Math.exp(forecast.mu)));
  const top = Math.log(Math.max(cap, forecast.upper, middle, 2) * 1.15);
  const width = Math.min(720, byId("why-body").clientWidth);
  const x = (tokens) => 10 + ((width - 20) * Math.log(Math.max(tokens, 1))) / top;
  const words = `median ${count(middle)}, interval ${count(forecast.lower)} to ${count(forecast.upper)} tokens, by ${forecast.source}; ${count(output)} exist, at most ${count(cap)}`;
  const drawing = svg("svg", { viewBox: `0 0 ${width} 62`, role: "img", "aria-label": words, preserveAspectRatio: "xMinYMid meet" },
    svg("line", { class: "grid", x1: 10, x2: width - 10, y1: 26, y2: 26 }),
    svg("rect", { class: "area", x: x(forecast.lower), width: Math.max(2, x(forecast.upper) - x(forecast.lower)), y: 18, height: 16, rx: 4 }),
    svg("circle", { class: "mark", cx: x(middle), cy: 26, r: 6 }),
    svg("line", { class: "limit", x1: x(cap), x2: x(cap), y1: 8, y2: 44 }),
    ...(output ? [svg("line", { class: "curve series-2", x1: 10, x2: x(output), y1: 40, y2: 40 })] : []));
  const key = el("ul", { class: "key" },
    el("li", {}, el("i", { class: "swatch rise" }), "interval that should hold it"),
    el("li", {}, el("i", { class: "swatch dot" }), "median"),
    el("li", {}, el("i", { class: "swatch line" }), "cap"),
    ...(output ? [el("li", {}, el("i", { class: "swatch made" }), "made so far")] : []));
  return el("div", {}, el("div", { class: "ruler" }, drawing), key, el("p", { class: "note" }, words));
}

function candidates({ candidates: found, candidates_of: all }) {
  const cell = (text, name = "") => el("td", { class: name }, text);
  const rows = found.map((c) =>
    el("tr", {},
      el("th", { scope: "row" }, c.replica_id),
      el("td", {}, el("span", { class: `chip ${VERDICTS[c.verdict] ?? ""}` }, c.verdict)),
      cell(count(c.used_blocks), "number"), cell(count(c.peak_blocks), "number"), cell(count(c.peak_with_blocks), "number"),
      cell(count(c.limit_blocks), "number"), cell(count(c.free_slots), "number")));
  const title = found.length < all ? `Replicas considered: the best ${count(found.length)} of ${count(all)}` : "Replicas considered";
  const columns = ["replica", "verdict", "blocks needed now", "peak without it", "peak while it runs", "limit", "free slots"];
  return [
    el("h3", {}, title),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
      el("table", {},
        el("thead", {}, el("tr", {}, ...columns.map((text, i) => el("th", { scope: "col", class: i > 1 ? "number" : "" }, text)))),
        el("tbody", {}, ...rows))),
  ];
}

function timeline(events) {
  if (!events.length) return el("p", { class: "note" }, "Nothing was noted.");
  return el("ol", { class: "timeline" }, ...events.map((event) =>
    el("li", {}, el("span", { class: "at" }, duration(event.at_s)), el("span", { class: "what" }, event.what), el("span", { class: "detail" }, event.detail))));
}
