// What the work cost, and what went wrong.

import { byId, el, facts, keyed, say, set, shown, style } from "./dom.js";
import { count, duration, figure, joules, meter, percent } from "./format.js";

const BOOKS = [
  ["used", "answers", (t) => t.request_joules - t.wasted_joules],
  ["wasted", "computed again", (t) => t.wasted_joules],
  ["idle", "idle", (t) => t.idle_joules],
  ["unattributed", "whose is not known", (t) => t.unattributed_joules],
];

/** The cluster's energy, booked. */
export function showEnergy({ energy }) {
  const { totals, sources } = energy;
  const metered = sources.length > 0;
  for (const id of ["energy-bar", "energy-key", "energy-facts"]) shown(byId(id), metered);
  shown(byId("energy-empty"), !metered);
  say(byId("energy-empty"), "Energy is not measured: no replica found a meter, and no power model is declared (the section `energy` of the configuration).");
  say(byId("energy-source"), metered ? sources.map(meter).join("; ") : "");
  if (!metered) return;
  const whole = Math.max(totals.metered_joules, 1e-9);
  const booked = BOOKS.map(([name, title, pick]) => ({ name, title, energy: pick(totals), share: pick(totals) / whole }));
  keyed(byId("energy-bar"), booked, (book) => book.name, (book) => el("i", { class: book.name }), (part, book) => style(part, "width", `${100 * book.share}%`));
  set(byId("energy-bar"), "aria-label", booked.map((book) => `${book.title} ${percent(book.share)}`).join(", "));
  keyed(byId("energy-key"), booked, (book) => book.name,
    (book) => {
      const value = el("b");
      const item = el("li", {}, el("i", { class: `swatch ${book.name}` }), `${book.title} `, value);
      item.told = value;
      return item;
    },
    (item, book) => say(item.told, `${joules(book.energy)}, ${percent(book.share)}`));
  const perToken = energy.joules_per_output_token;
  facts(byId("energy-facts"), [
    ["counted since the start", joules(totals.metered_joules)],
    ["power now", energy.power_w === null ? "–" : `${count(energy.power_w)} W`, energy.power_cap_w === null ? "" : `capped at ${count(energy.power_cap_w)} W`],
    ["of requests, per output token", perToken === null ? "–" : `${figure(perToken)} J`],
    ["waste through evictions", percent(totals.request_joules > 0 ? totals.wasted_joules / totals.request_joules : 0), "of the requests' energy"],
  ]);
}

const FAULTS = {
  replica_frozen: "replicas that were frozen, killed and replaced",
  replica_process_died: "replica processes that died",
  replica_engine_died: "engines that died",
  replica_node_lost: "replicas that went with their node",
  replica_replaced: "replicas started in place of others",
  request_poisoned: "requests that engines die of, given up",
  request_suspected: "requests suspected of an engine's end",
  client_lost: "clients that fell silent",
  controller_restarted: "restarts of the controller",
  predictor_restarted: "restarts of a predictor",
  rows_dropped: "rows of statistics that could not be written",
};

/** What went wrong since the start; what did not is left out. */
export function showFaults({ faults, uptime_s: uptimeS, status }) {
  const happened = Object.entries(faults).filter(([, times]) => times > 0);
  keyed(byId("faults"), happened, ([name]) => name,
    ([name]) => {
      const times = el("b");
      const item = el("li", { "data-fault": name }, times, FAULTS[name] ?? name.replaceAll("_", " "));
      item.times = times;
      return item;
    },
    (item, [, times]) => say(item.times, count(times)));
  shown(byId("faults-empty"), !happened.length);
  say(byId("faults-empty"), `No part has failed in the ${duration(uptimeS)} since the start.`);
  say(byId("faults-note"), `${count(status.refused)} refused, ${count(status.preemptions)} evictions, ${count(status.recalls)} recalls to another replica, ${count(status.recomputed_tokens)} tokens computed again`);
}
