// The endpoint's events, read by `fetch` because only that can send a key.

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const KEPT_KEY = "tiebreak-key";

/** The header with the key that was given in this tab, if any. */
export function keyHeader() {
  const key = sessionStorage.getItem(KEPT_KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Keep a key for as long as the tab is open; null forgets it. */
export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(KEPT_KEY);
  else sessionStorage.setItem(KEPT_KEY, key);
}

/** Follows the events until it is stopped, again and again when the connection ends. */
export class Stream {
  /**
   * `address()` says where; `on` has `snapshot(data)`, `trouble(sentence)`, `locked()` for a key
   * that is missing or wrong, and `broken(sentence)` for a connection that ended.
   */
  constructor(address, on) {
    this.address = address;
    this.on = on;
    this.abort = null;
    this.failures = 0;
  }

  /** Begin, or begin anew. */
  start() {
    this.stop();
    const abort = new AbortController();
    this.abort = abort;
    this.follow(abort.signal);
  }

  /** End. */
  stop() {
    this.abort?.abort();
    this.abort = null;
  }

  async follow(signal) {
    while (!signal.aborted) {
      let reason = "the connection ended";
      try {
        const answer = await fetch(this.address(), { headers: keyHeader(), signal, cache: "no-store" });
        if (answer.status === 401) {
          this.stop();
          this.on.locked();
          return;
        }
        if (answer.ok) await this.read(answer.body.getReader());
        else reason = await refusal(answer);
      } catch {
        reason = "the endpoint cannot be reached";
      }
      if (signal.aborted) return;
      this.on.broken(reason);
      const pause = RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)];
      await new Promise((done) => setTimeout(done, pause));
    }
  }

  async read(reader) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        try {
          this.hand(event);
        } catch (error) {
          reportError(error); // a defect of this page, not of the connection
        }
      }
    }
  }

  hand(event) {
    const fields = Object.fromEntries(
      event.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
    );
    const data = JSON.parse(fields.data);
    this.failures = 0;
    if (fields.event === "snapshot") this.on.snapshot(data);
    else if (fields.event === "trouble") this.on.trouble(data);
  }
}

/** The sentence of an answer that is an error. */
export async function refusal(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the endpoint answered ${answer.status}`;
  }
}
