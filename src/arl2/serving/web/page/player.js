// One stream, watched: the socket, the screen behind it, and coming back after the connection was lost.

import { CodecsScreen, canDecode } from "./codecs.js";
import { canPlay, MediaScreen } from "./media.js";

const HEADER = 24; // bytes: block (4), frame (8), flags (2), two for later, seconds since 1970 (8)
const SILENT = 12_000; // milliseconds without a word after which a connection counts as lost
const PING = 2_000;
const WAITS = [0, 250, 500, 1000, 2000, 3000, 5000]; // milliseconds before another try
const REMEMBERED = 4000; // figures of the last frames

/**
 * Calls `on.state(kind, text)` with kind connecting | live | lost | ended | refused, `on.info(info)`,
 * `on.receipt(receipt)`, `on.picture(frame, head)` after each picture, `on.error(text)`.
 */
export class Player {
  shown = []; // numbers of frames, in the order in which they were shown
  delays = []; // milliseconds from release to picture, of the same frames
  pictures = 0; // in all
  mode = "";
  block = null; // the last block that was wholly shown
  frame = null; // the last frame
  #api;
  #stream;
  #canvas;
  #video;
  #on;
  #after;
  #screen = null;
  #socket = null;
  #heads = new Map();
  #first = null; // block of the first picture
  #codecsFailed = 0;
  #tries = 0;
  #timer = null;
  #pinger = null;
  #heard = 0;
  #pings = [];
  #clock = { offset: 0, trip: Infinity };
  #waiting = new Map(); // commands by key
  #said = ""; // the server's last error
  #initial = false; // whether the next binary message is the init segment
  #closed = false;

  constructor(api, stream, { canvas, video, after = null, on }) {
    this.#api = api;
    this.#stream = stream;
    this.#canvas = canvas;
    this.#video = video;
    this.#after = after;
    this.#on = on;
    addEventListener("online", this.reconnect);
    this.#connect();
  }

  get surface() {
    return this.#screen?.surface ?? this.#canvas;
  }

  /** Seconds since 1970 by the server's clock. */
  now() {
    return (performance.timeOrigin + performance.now()) / 1000 + this.#clock.offset;
  }

  /** Try at once, if there is no connection. */
  reconnect = () => {
    if (this.#closed || this.#timer === null) return;
    this.#tries = 0;
    this.#connect();
  };

  /** Give up what was not shown, and continue with the newest block. */
  skip() {
    this.#after = null;
    this.block = null;
    this.#first = null;
    const socket = this.#socket;
    this.#socket = null;
    this.#refuseWaiting("The player went on to the newest picture before the answer came.");
    socket?.close(1000);
    this.#heads.clear();
    this.#tries = 0;
    this.#connect();
  }

  close() {
    this.#closed = true;
    removeEventListener("online", this.reconnect);
    clearTimeout(this.#timer);
    clearInterval(this.#pinger);
    this.#refuseWaiting("The stream was closed.");
    this.#socket?.close(1000);
    this.#screen?.close();
  }

  /**
   * Give a command; resolves with its last receipt. Over the socket where there is one, so that `queued` is told too.
   * `key` is the caller's own name for it.
   */
  async give(action, key, values) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return this.#api.give(this.#stream, action, { key, ...values });
    return new Promise((resolve, reject) => {
      this.#waiting.set(key, { resolve, reject });
      this.#socket.send(JSON.stringify({ type: "session.interaction", action, key, ...values }));
    });
  }

  async #connect() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#screen === null) {
      const screen = await this.#newScreen();
      if (this.#closed || this.#screen !== null) return;
      if (screen === null) {
        this.#on.state("refused", "This browser plays no H.264. Try another one, or open the stream in a player.");
        return;
      }
      this.#screen = screen;
      this.mode = screen.name;
    }
    if (this.#tries === 0 && this.frame === null) this.#on.state("connecting", "");
    const after = this.block ?? (this.#first === null ? this.#after : this.#first - 1);
    const socket = new WebSocket(this.#api.socketAddress(this.#stream, { after, format: this.#screen.format }));
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#initial = false;
    let opened = false;
    socket.addEventListener("open", () => {
      opened = true;
      this.#heard = performance.now();
      this.#pings = [];
      this.#ping();
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      this.#heard = performance.now();
      if (typeof data === "string") this.#word(JSON.parse(data));
      else this.#binary(data);
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket === this.#socket) this.#lost(code, reason, opened);
    });
    clearInterval(this.#pinger);
    this.#pinger = setInterval(() => this.#ping(), PING);
  }

  async #newScreen() {
    const calls = {
      painted: (frame) => this.#picture(frame),
      failed: (error) => this.#screenFailed(error),
    };
    if (this.#codecsFailed < 2 && (await canDecode())) return new CodecsScreen(this.#canvas, calls);
    return canPlay() ? new MediaScreen(this.#video, calls) : null;
  }

  #screenFailed(error) {
    console.warn("The picture has to begin again:", error);
    this.#codecsFailed += 1;
    this.#screen?.close();
    this.#screen = null;
    this.#drop();
  }

  /** Close the socket, as if it had been lost. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    if (socket !== null) this.#lost(1006, "", true);
  }

  #ping() {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) return;
    // A network that is gone closes nothing: silence does. A page in the background may be slow to listen.
    if (performance.now() - this.#heard > SILENT && !document.hidden) {
      this.#drop();
      return;
    }
    this.#pings.push(performance.now());
    socket.send('{"type":"ping"}');
  }

  #pong(time) {
    const sent = this.#pings.shift();
    if (sent === undefined || !Number.isFinite(time)) return;
    const got = performance.now();
    const trip = got - sent;
    // The quickest answer tells most; a clock may drift, so that old ones count less and less.
    if (trip > this.#clock.trip) this.#clock.trip *= 1.1;
    else this.#clock = { trip, offset: time - (performance.timeOrigin + (sent + got) / 2) / 1000 };
  }

  #word(message) {
    const { type } = message;
    if (type === "session.start") {
      // A stream that is paused shows nothing now, and is there all the same.
      this.#on.info(message.stream);
      this.#on.state(this.frame === null ? "connecting" : "live", "");
    } else if (type === "stream.info") this.#on.info(message.stream);
    else if (type === "video.start") {
      this.#initial = this.#screen.format === "mp4";
      this.#screen.start(message);
    } else if (type === "video.chunk_metadata") {
      this.#heads.set(message.block, message);
      if (this.#first === null) this.#first = message.block;
    } else if (type === "session.interaction.queued") this.#on.receipt(message);
    else if (type === "session.interaction.applied" || type === "session.interaction.refused") {
      this.#on.receipt(message);
      const waiting = this.#waiting.get(message.key);
      this.#waiting.delete(message.key);
      if (message.state === "applied") waiting?.resolve(message);
      else waiting?.reject(new Error(message.error));
    } else if (type === "pong") this.#pong(message.time);
    else if (type === "error") this.#error(message.message);
    else if (type === "done" && message.reason !== "draining") this.#end(message);
  }

  #error(text) {
    this.#said = text;
    // Before the server closes a socket its text is shown as the reason; between commands it is told at once.
    if (this.frame !== null) this.#on.error(text);
  }

  #end({ reason, error }) {
    this.#closed = true;
    clearInterval(this.#pinger);
    this.#refuseWaiting("The stream has ended.");
    const texts = { end: "The stream is at its end.", deleted: "The stream was ended.", failed: "The stream failed." };
    this.#on.state("ended", error ?? texts[reason] ?? "The stream has ended.");
  }

  #binary(buffer) {
    if (this.#initial) {
      this.#initial = false;
      this.#screen.init(new Uint8Array(buffer));
      return;
    }
    const view = new DataView(buffer);
    this.#screen?.add({
      block: view.getUint32(0),
      frame: Number(view.getBigUint64(4)),
      key: (view.getUint16(12) & 1) === 1,
      released: view.getFloat64(16),
      data: new Uint8Array(buffer, HEADER),
    });
  }

  #picture(frame) {
    const delay = (this.now() - frame.released) * 1000;
    this.frame = frame.frame;
    this.pictures += 1;
    this.shown.push(frame.frame);
    this.delays.push(delay);
    if (this.shown.length > REMEMBERED) {
      this.shown.splice(0, REMEMBERED / 2);
      this.delays.splice(0, REMEMBERED / 2);
    }
    if (this.#tries) this.#tries = 0;
    this.#on.state("live", "");
    const head = this.#heads.get(frame.block);
    for (const [block, known] of this.#heads) {
      if (known.frame + known.frames - 1 > frame.frame) continue;
      this.block = Math.max(block, this.block ?? block);
      this.#heads.delete(block);
    }
    this.#on.picture(frame, head);
  }

  #refuseWaiting(text) {
    for (const { reject } of this.#waiting.values()) reject(new Error(text));
    this.#waiting.clear();
  }

  async #lost(code, reason, opened) {
    this.#socket = null;
    clearInterval(this.#pinger);
    this.#refuseWaiting("The connection was lost before the answer came.");
    this.#heads.clear();
    if (this.#closed) return;
    if (code === 4404) return this.#refuse("This stream is not here any more.");
    if (code === 1008) {
      // What it said before closing; reason "wrong_key" also of a socket that could not be told by a status.
      return this.#refuse(this.#said || "The server refuses this page.", reason === "wrong_key" ? 401 : 0);
    }
    if (!opened) {
      // Why a handshake failed no browser tells; the stream's own address does.
      try {
        await this.#api.info(this.#stream);
      } catch (error) {
        if (this.#closed) return;
        if (error.status === 404) return this.#refuse("This stream is not here any more.");
        if (error.status === 401 || error.status === 403) return this.#refuse(error.message, error.status);
      }
      if (this.#closed) return;
    }
    // 1013: the server has no room for the stream now, and has said so.
    const full = code === 1013 && this.#said;
    const wait = full ? WAITS.at(-1) : WAITS[Math.min(this.#tries, WAITS.length - 1)];
    this.#tries += 1;
    this.#on.state("lost", full ? `${this.#said} Trying again …` : "Connection lost. Trying again …");
    this.#timer = setTimeout(() => this.#connect(), wait);
  }

  #refuse(text, status = 0) {
    this.#on.state("refused", text);
    if (status === 401) this.#on.locked();
  }
}
