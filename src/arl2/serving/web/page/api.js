// The server's HTTP side. The page may lie below a path of a proxy, so every address is relative to the page's own.

const KEY = "arl2-key"; // kept for this tab alone

export class ApiError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Api {
  #key = sessionStorage.getItem(KEY) ?? "";

  get hasKey() {
    return this.#key !== "";
  }

  setKey(key) {
    this.#key = key.trim();
    if (this.#key) sessionStorage.setItem(KEY, this.#key);
    else sessionStorage.removeItem(KEY);
  }

  /** Raises ApiError with a sentence; status 0 where the server did not answer at all. */
  async fetch(method, path, { json, body, signal } = {}) {
    const headers = {};
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    if (body !== undefined) headers["Content-Type"] = "application/octet-stream";
    let answer;
    try {
      answer = await fetch(new URL(path, document.baseURI), {
        method, headers, signal, cache: "no-store", body: json === undefined ? body : JSON.stringify(json),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer.", 0);
    }
    if (answer.ok) return answer;
    let message = `The server answered ${answer.status}.`;
    try {
      message = (await answer.json()).error.message;
    } catch {
      // A proxy's own page: its status says all there is.
    }
    throw new ApiError(message, answer.status, Number(answer.headers.get("Retry-After")) || null);
  }

  async #json(...request) {
    const answer = await this.fetch(...request);
    return answer.status === 204 ? null : answer.json();
  }

  examples() {
    return this.#json("GET", "v1/examples");
  }

  async streams() {
    return (await this.#json("GET", "v1/streams")).data;
  }

  info(stream) {
    return this.#json("GET", `v1/streams/${encodeURIComponent(stream)}`);
  }

  create(request) {
    return this.#json("POST", "v1/streams", { json: request });
  }

  remove(stream) {
    return this.#json("DELETE", `v1/streams/${encodeURIComponent(stream)}`);
  }

  give(stream, action, values) {
    return this.#json("POST", `v1/streams/${encodeURIComponent(stream)}/${action}`, { json: values });
  }

  load(snapshot) {
    return this.#json("POST", "v1/streams/snapshot", { body: snapshot });
  }

  async snapshot(stream, block) {
    const at = block === null ? "" : `&block=${block}`;
    const path = `v1/streams/${encodeURIComponent(stream)}/snapshot?kind=exact${at}`;
    return (await this.fetch("GET", path)).blob();
  }

  async video(stream) {
    return (await this.fetch("GET", `v1/streams/${encodeURIComponent(stream)}/video.mp4`)).blob();
  }

  /** Sockets cannot have headers in a browser, so the key is in the address. */
  socketAddress(stream, { after, format }) {
    const address = new URL(`v1/streams/${encodeURIComponent(stream)}/live`, document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.searchParams.set("format", format);
    if (after !== null) address.searchParams.set("after", String(after));
    if (this.#key) address.searchParams.set("key", this.#key);
    return address;
  }
}
