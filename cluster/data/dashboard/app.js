// The live page: follows the endpoint's snapshots and shows each of them.

import { byId, facts, say, set, shown } from "./dom.js";
import { showEnergy, showFaults } from "./energy.js";
import { Why } from "./explanation.js";
import { clock, count, duration, figure, meters, percent } from "./format.js";
import { History, Percentiles } from "./latency.js";
import { Queue } from "./queue.js";
import { Replicas } from "./replicas.js";
import { Scatter } from "./scatter.js";
import { Stream, keepKey, keyHeader } from "./stream.js";

const STALE_MS = 4000;
const KEPT_THEME = "tiebreak-theme";

const why = new Why(() => paused);
const replicas = new Replicas(() => {
  all = true;
  stream.start();
});
const queue = new Queue((id) => why.ask(id));
const curves = new History();
const percentiles = new Percentiles();
const scatter = new Scatter();

let all = false;
let paused = false;
let locked = false;
let latest = null;
let heardMs = performance.now();
let complaint = "";

function address() {
  const query = new URLSearchParams({ by: byId("percentile-by").value, window: byId("percentile-window").value });
  if (all) query.set("replicas", "all");
  return `tiebreak/events?${query}`;
}

const stream = new Stream(address, {
  snapshot(snapshot) {
    latest = snapshot;
    window.tiebreak = snapshot; // for whoever opens the browser's console
    heardMs = performance.now();
    complaint = "";
    show(snapshot);
    state();
  },
  trouble(sentence) {
    complaint = sentence;
    state();
  },
  broken(sentence) {
    complaint = sentence;
    state();
  },
  locked: askForKey,
});

function show(snapshot) {
  shown(byId("start"), false);
  shown(byId("main"), true);
  const { status, summary } = snapshot;
  for (const name of ["bottleneck", "queue", "forecasts"]) {
    const card = byId(`verdict-${name}`);
    set(card, "data-level", summary[name].level);
    say(card.querySelector(".short"), summary[name].short);
    say(card.querySelector(".text"), summary[name].text);
  }
  say(byId("model"), status.model);
  set(byId("model"), "title", status.model);
  say(byId("policy"), status.policy);
  say(byId("uptime"), duration(snapshot.uptime_s));
  document.title = `${summary.queue.short} · ${status.model} · Tiebreak`;
  facts(byId("tiles"), tiles(snapshot));
  replicas.show(snapshot);
  queue.show(snapshot);
  curves.show(snapshot);
  percentiles.show(snapshot);
  scatter.show(snapshot);
  showEnergy(snapshot);
  showFaults(snapshot);
}

function tiles({ status, queues, energy, history, latencies }) {
  const waits = (name) => queues.find((one) => one.request_class === name) ?? { requests: 0, running: 0 };
  const last = history.at(-1);
  const metered = energy.power_w !== null;
  return [
    ["online waiting", count(waits("online").requests), `${count(waits("online").running)} run`],
    ["offline waiting", count(waits("offline").requests), `${count(waits("offline").running)} run`],
    ["output tokens/s", last ? figure(last.tokens_per_s) : "–"],
    ["first token, online", duration(last?.ttft_p50_s), `p99 ${duration(last?.ttft_p99_s)}`],
    ["latency", duration(last?.latency_p50_s), `p99 ${duration(last?.latency_p99_s)}`],
    ["KV memory in use", last ? percent(last.kv_usage) : "–", last ? "of all replicas, by the engines" : ""],
    ["power now", metered ? `${count(energy.power_w)} W` : "–", metered ? meters(energy.sources) : "not measured"],
    ["finished", count(status.finished), `${count(status.clients)} client${status.clients === 1 ? "" : "s"}`],
  ];
}

/** Say whether what is shown is news. */
function state() {
  const silentMs = performance.now() - heardMs;
  const stale = !paused && (complaint !== "" || silentMs > STALE_MS);
  const word = locked ? "locked" : paused ? "paused" : stale ? "stale" : latest === null ? "connecting" : "live";
  set(byId("live"), "data-state", word);
  say(byId("live"), word);
  document.body.classList.toggle("stale", stale && latest !== null);
  const banner = byId("banner");
  shown(banner, stale || paused);
  banner.classList.toggle("mild", paused);
  if (!stale && !paused) return;
  const from = latest === null ? "Nothing has been heard yet" : `The figures below are from ${clock(latest.unix_s)}`;
  if (paused) say(banner, `Paused. ${from}.`);
  else say(banner, `${from}${complaint ? `: ${complaint.replace(/\.$/, "")}` : ""}.${locked ? "" : " Trying again."}`);
}

function askForKey() {
  locked = true;
  complaint = "the endpoint needs an API key";
  state();
  const dialog = byId("key");
  const wrong = byId("key-wrong");
  shown(wrong, "authorization" in keyHeader());
  say(wrong, "The endpoint does not know that key.");
  keepKey(null);
  byId("key-value").value = "";
  if (!dialog.open) dialog.showModal();
}

byId("key-form").addEventListener("submit", () => {
  keepKey(byId("key-value").value.trim());
  locked = false;
  complaint = "";
  follow();
});

byId("key").addEventListener("cancel", (event) => event.preventDefault());

byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("find-id").value.trim();
  if (id) why.ask(id);
});

byId("pause").addEventListener("click", () => {
  paused = !paused;
  set(byId("pause"), "aria-pressed", paused);
  say(byId("pause"), paused ? "Go on" : "Pause");
  follow();
});

for (const id of ["percentile-by", "percentile-window"]) byId(id).addEventListener("change", () => !paused && stream.start());

/** Follow while somebody can see it. */
function follow() {
  heardMs = performance.now();
  if (paused || document.hidden) stream.stop();
  else stream.start();
  state();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  say(byId("theme"), name === "dark" ? "Light" : "Dark");
  set(byId("theme"), "aria-label", `Use the ${name === "dark" ? "light" : "dark"} colours`);
  scatter.paint();
}

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const chosen = () => localStorage.getItem(KEPT_THEME) ?? (prefersDark.matches ? "dark" : "light");
prefersDark.addEventListener("change", () => theme(chosen()));
byId("theme").addEventListener("click", () => {
  localStorage.setItem(KEPT_THEME, document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  theme(chosen());
});

theme(chosen());
document.addEventListener("visibilitychange", follow);
setInterval(state, 1000);
follow();
why.fromAddress();
