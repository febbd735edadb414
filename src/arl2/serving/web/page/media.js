// Pictures by MediaSource, for pages without WebCodecs (plain http in a network): mp4 fragments into a video element.

const BEHIND = 0.35; // seconds behind the newest frame at which the picture jumps to it
const KEPT = 4; // seconds that stay buffered behind the picture
const Source = globalThis.MediaSource ?? globalThis.ManagedMediaSource;

export function canPlay() {
  return Source !== undefined && Source.isTypeSupported('video/mp4; codecs="avc1.64000c"');
}

/** As `CodecsScreen`, for frames whose data are fragments of mp4; a frame's number is its time. */
export class MediaScreen {
  format = "mp4";
  name = "MediaSource";
  #video;
  #painted;
  #failed;
  #source = null;
  #buffer = null;
  #codec = "";
  #fps = 16;
  #queue = [];
  #frames = new Map(); // by number: appended, not shown yet
  #catching = false; // after a reconnect nothing is skipped: played faster instead
  #watching = null;
  #last = -1;

  constructor(video, { painted, failed }) {
    this.#video = video;
    this.#painted = painted;
    this.#failed = failed;
    video.hidden = false;
    video.muted = true;
    video.disableRemotePlayback = true; // ManagedMediaSource asks for it
    video.addEventListener("error", this.#error);
    video.addEventListener("waiting", this.#steer);
    this.#watch();
  }

  get surface() {
    return this.#video;
  }

  start({ codec, fps }) {
    this.#fps = fps;
    this.#queue = [];
    if (this.#source !== null && codec === this.#codec && this.#source.readyState === "open") {
      this.#catching = true;
      return;
    }
    this.#codec = codec;
    this.#frames.clear();
    this.#buffer = null;
    const source = new Source();
    this.#source = source;
    const before = this.#video.src;
    this.#video.src = URL.createObjectURL(source);
    if (before) URL.revokeObjectURL(before);
    source.addEventListener("sourceopen", () => {
      if (source !== this.#source || this.#buffer !== null) return;
      try {
        this.#buffer = source.addSourceBuffer(`video/mp4; codecs="${codec}"`);
      } catch (error) {
        this.#failed(error);
        return;
      }
      this.#buffer.addEventListener("updateend", () => {
        this.#steer();
        this.#pump();
      });
      this.#pump();
    });
    // Refused where pages may not play before a click, even silently: the next frame asks again.
    this.#video.play().catch(() => {});
  }

  /** What stands before all fragments. */
  init(data) {
    this.#queue.push(data);
    this.#pump();
  }

  add(frame) {
    if (frame.frame > this.#last) this.#frames.set(frame.frame, frame);
    this.#queue.push(frame.data);
    this.#pump();
  }

  close() {
    const video = this.#video;
    const address = video.src;
    this.#source = this.#buffer = null;
    this.#queue = [];
    this.#frames.clear();
    video.cancelVideoFrameCallback?.(this.#watching);
    video.removeEventListener("error", this.#error);
    video.removeEventListener("waiting", this.#steer);
    video.removeAttribute("src");
    video.load();
    if (address) URL.revokeObjectURL(address);
    video.hidden = true;
  }

  #error = () => {
    if (this.#source === null) return;
    const error = this.#video.error ?? new Error("The video cannot be played.");
    this.#source = this.#buffer = null;
    this.#failed(error);
  };

  #pump() {
    const buffer = this.#buffer;
    if (buffer === null || buffer.updating || this.#source?.readyState !== "open") return;
    const start = buffer.buffered.length ? buffer.buffered.start(0) : Infinity;
    if (start < this.#video.currentTime - 3 * KEPT) {
      buffer.remove(0, this.#video.currentTime - KEPT);
      return;
    }
    if (!this.#queue.length) return;
    // Of a backlog many fragments at once.
    const parts = this.#queue.splice(0, 64);
    try {
      buffer.appendBuffer(parts.length === 1 ? parts[0] : joined(parts));
    } catch (error) {
      if (error.name === "QuotaExceededError" && start < this.#video.currentTime - 1) {
        this.#queue.unshift(...parts);
        buffer.remove(0, this.#video.currentTime - 1);
      } else this.#failed(error);
    }
  }

  /** Keep the picture near the newest frame. */
  #steer = () => {
    const video = this.#video;
    const { buffered } = video;
    if (!buffered.length) return;
    const last = buffered.length - 1;
    const end = buffered.end(last);
    const inside = [...Array(buffered.length).keys()].some(
      (i) => buffered.start(i) - 0.01 <= video.currentTime && video.currentTime <= buffered.end(i),
    );
    const behind = end - video.currentTime;
    if (!inside) {
      // The first frame, or frames that were not kept for this viewer: on to the next that there is.
      let next = last;
      while (next > 0 && buffered.start(next - 1) > video.currentTime) next -= 1;
      if (buffered.start(next) > video.currentTime || next === last) video.currentTime = buffered.start(next);
    } else if (this.#catching && !document.hidden) {
      if (behind > BEHIND) video.playbackRate = Math.min(4, 1.25 + behind);
      else {
        this.#catching = false;
        video.playbackRate = 1;
      }
    } else if (behind > BEHIND) video.currentTime = end - 0.02;
    if (video.paused && !document.hidden) video.play().catch(() => {});
  };

  #watch() {
    const video = this.#video;
    if ("requestVideoFrameCallback" in video) {
      this.#watching = video.requestVideoFrameCallback((_, { mediaTime }) => {
        this.#shown(mediaTime);
        this.#watch();
      });
      return;
    }
    // Older Firefox: the time of the picture is near enough.
    const look = () => {
      if (this.#video.hidden) return;
      if (this.#source !== null && !this.#video.paused) this.#shown(this.#video.currentTime - 0.5 / this.#fps);
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }

  #shown(seconds) {
    if (this.#source === null) return;
    const number = Math.round(seconds * this.#fps);
    if (number <= this.#last) return;
    const frame = this.#frames.get(number);
    if (frame === undefined) return;
    this.#last = number;
    for (const known of this.#frames.keys()) {
      if (known > number) break;
      this.#frames.delete(known);
    }
    this.#painted(frame);
  }
}

function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.byteLength;
  }
  return all;
}
