// What waits, in the order in which it goes.

import { byId, el, keyed, say, shown } from "./dom.js";
import { count, duration, fine, rough, some } from "./format.js";

const FEW = 10;

const median = (forecast) => Math.max(1, Math.round(Math.exp(forecast.mu)));

/** The table of the first requests; `explain(id)` is called for the one somebody asks about. */
export class Queue {
  constructor(explain) {
    this.explain = explain;
    this.body = byId("queue-rows");
    this.all = false;
    this.more = byId("queue-more");
    this.more.addEventListener("click", () => {
      this.all = !this.all;
      this.show(this.snapshot);
    });
  }

  /** Show that of a snapshot. */
  show(snapshot) {
    this.snapshot = snapshot;
    const waiting = snapshot.queues.reduce((sum, queue) => sum + queue.requests, 0);
    const parts = snapshot.queues.map((queue) => `${count(queue.requests)} ${queue.request_class} (${rough(queue.predicted_tokens)} predicted tokens)`);
    const head = this.all ? snapshot.head : snapshot.head.slice(0, FEW);
    say(byId("queue-note"), `${parts.join(", ")}${head.length < waiting && head.length ? `; the first ${count(head.length)}` : ""}`);
    shown(this.more, snapshot.head.length > FEW);
    say(this.more, this.all ? `Show the first ${FEW}` : `Show the first ${count(snapshot.head.length)}`);
    const empty = byId("queue-empty");
    shown(empty, !snapshot.head.length);
    shown(this.body.parentElement, snapshot.head.length > 0);
    say(empty, !waiting ? "Nothing waits." : snapshot.tenant === null ? `${some(waiting, "request")} waiting.` : `${some(waiting, "request")} waiting; among the first there is none of ${snapshot.tenant}.`);
    keyed(this.body, head, (item) => item.request_id, (item) => this.row(item), (row, item) => this.update(row, item));
  }

  row(item) {
    const names = ["place", "who", "waits", "prompt", "forecast", "score", "reason"];
    const p = Object.fromEntries(names.map((name) => [name, el("span")]));
    const cell = (label, name, child) => el("td", { role: "cell", class: name, ...(label ? { "data-label": label } : {}) }, child);
    const id = el("button", { type: "button", class: "link", title: "Explain this request", onclick: () => this.explain(item.request_id) }, item.request_id);
    const row = el("tr", { role: "row" },
      cell("", "number", p.place), cell("", "id", id), cell("", "who", p.who), cell("waits", "number", p.waits),
      cell("prompt", "number", p.prompt), cell("forecast", "number", p.forecast), cell("", "number score", p.score), cell("", "why", p.reason));
    row.parts = p;
    return row;
  }

  update(row, item) {
    const p = row.parts;
    const { forecast } = item;
    say(p.place, count(item.position));
    say(p.who, `${item.request_class}, ${item.tenant}`);
    say(p.waits, duration(item.waited_s));
    say(p.prompt, count(item.prompt_tokens));
    say(p.forecast, `${count(median(forecast))} (${count(forecast.lower)}–${count(forecast.upper)})`);
    say(p.score, fine(item.key));
    say(p.reason, item.reason);
  }
}
