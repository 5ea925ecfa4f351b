// Numbers, durations and names as they are written on the page.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });
const five = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 5 });
const fiveCompact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 5 });
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

/** A count: 12,345. */
export const count = (number) => whole.format(number);

/** Three digits of anything: 0.0123, 1.23, 1,230. */
export const figure = (number) => (Math.abs(number) >= 1000 ? whole : short).format(number);

/** Five digits, so that neighbours in an order differ: 0.012345, 12,345, 1.2346M. */
export const fine = (number) => (Math.abs(number) < 1e6 ? five : fiveCompact).format(number);

/** For axes: 1.2K. */
export const rough = (number) => (Math.abs(number) < 1000 ? short : compact).format(number);

/** A share of 1 as percents. */
export const percent = (share) =>
  `${share > 0 && share < 0.1 ? (share * 100).toFixed(1) : Math.round(share * 100)}%`;

/** Seconds, in the unit that suits them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.00005) return "0 s";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 99.5) return `${seconds.toFixed(seconds < 9.95 ? 2 : 1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** Joules, in the unit that suits them. */
export function joules(energy) {
  if (energy === null || energy === undefined) return "–";
  if (energy >= 3.6e6) return `${figure(energy / 3.6e6)} kWh`;
  return energy >= 1e4 ? `${figure(energy / 1000)} kJ` : `${figure(energy)} J`;
}

/** The time of day of a moment in seconds of the Unix epoch. */
export const clock = (unixS) => new Date(unixS * 1000).toLocaleTimeString("en-GB");

/** Such as `3 replicas`. */
export const some = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** What a meter is, so that a modelled joule is never taken for a measured one. */
export function meter(source) {
  if (source === "none" || source === "") return "not measured";
  return source.startsWith("model:") ? `modelled, not measured (${source})` : `measured (${source})`;
}

/** The same of several meters, in a word or two. */
export function meters(sources) {
  const modelled = sources.filter((source) => source.startsWith("model:")).length;
  if (!modelled) return "measured";
  return modelled < sources.length ? "partly modelled" : "modelled";
}
