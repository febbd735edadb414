// Pictures by WebCodecs: Annex-B H.264 into a canvas, each as soon as it is decoded.

const FED = 12; // frames that are decoded ahead of the picture at most
const FASTEST = 17; // milliseconds between pictures of a backlog, about one of most displays

/** Whether the browser can; it needs a secure context, and H.264. */
export async function canDecode() {
  if (!("VideoDecoder" in globalThis)) return false;
  try {
    return (await VideoDecoder.isConfigSupported({ codec: "avc1.64000c", optimizeForLatency: true })).supported;
  } catch {
    return false;
  }
}

/**
 * Shows frames on arrival while there are few; of a backlog it shows every one, only faster.
 *
 * A frame is {block, frame, key, released, data}; `painted(frame)` is called for each that is drawn, `failed(error)`
 * where the decoder gives up: nothing more is drawn until `start` is called again.
 */
export class CodecsScreen {
  format = "h264";
  name = "WebCodecs";
  #canvas;
  #context;
  #painted;
  #failed;
  #decoder = null;
  #period = 1000 / 16;
  #coming = []; // encoded
  #sent = new Map(); // by time: frames that the decoder has
  #ready = []; // [frame, picture], decoded
  #last = -1; // frame that was drawn last
  #drawn = 0; // when
  #timer = null;

  constructor(canvas, { painted, failed }) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#painted = painted;
    this.#failed = failed;
    canvas.hidden = false;
    document.addEventListener("visibilitychange", this.#paint);
  }

  get surface() {
    return this.#canvas;
  }

  /** Begin, or begin again on a new socket: what was not drawn comes again. */
  start({ codec, width, height, fps }) {
    this.#clear();
    this.#period = 1000 / fps;
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
    }
    const decoder = new VideoDecoder({
      output: (picture) => this.#output(picture),
      error: (error) => {
        if (decoder === this.#decoder) this.#fail(error);
      },
    });
    decoder.configure({ codec, optimizeForLatency: true });
    this.#decoder = decoder;
  }

  add(frame) {
    this.#coming.push(frame);
    this.#feed();
  }

  close() {
    this.#clear();
    this.#canvas.hidden = true;
    document.removeEventListener("visibilitychange", this.#paint);
  }

  #clear() {
    const decoder = this.#decoder;
    this.#decoder = null;
    if (decoder !== null && decoder.state !== "closed") decoder.close();
    for (const [, picture] of this.#ready) picture.close();
    this.#ready = [];
    this.#coming = [];
    this.#sent.clear();
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  #fail(error) {
    this.#clear();
    this.#failed(error);
  }

  #feed() {
    while (this.#decoder !== null && this.#coming.length && this.#sent.size + this.#ready.length < FED) {
      const frame = this.#coming.shift();
      const timestamp = Math.round(frame.frame * this.#period * 1000);
      this.#sent.set(timestamp, frame);
      try {
        this.#decoder.decode(new EncodedVideoChunk({ type: frame.key ? "key" : "delta", timestamp, data: frame.data }));
      } catch (error) {
        this.#fail(error);
      }
    }
  }

  #output(picture) {
    const frame = this.#sent.get(picture.timestamp);
    this.#sent.delete(picture.timestamp);
    // After a new start the first frames of a block may have been drawn: they are decoded for those that follow them.
    if (frame === undefined || frame.frame <= this.#last) picture.close();
    else this.#ready.push([frame, picture]);
    this.#paint();
    this.#feed();
  }

  #paint = () => {
    clearTimeout(this.#timer);
    this.#timer = null;
    while (this.#ready.length) {
      const wait = this.#drawn + this.#gap() - performance.now();
      if (wait > 1) {
        this.#timer = setTimeout(this.#paint, wait);
        return;
      }
      const [frame, picture] = this.#ready.shift();
      this.#context.drawImage(picture, 0, 0, this.#canvas.width, this.#canvas.height);
      picture.close();
      this.#last = frame.frame;
      this.#drawn = performance.now();
      this.#painted(frame);
      this.#feed();
    }
  };

  /** Milliseconds between two pictures. */
  #gap() {
    if (document.hidden) return 0; // nobody looks, and timers hardly run
    const waiting = this.#ready.length + this.#sent.size + this.#coming.length;
    // The server sends at the video's pace; half of it takes out what the way made uneven.
    if (waiting <= 2) return this.#period / 2;
    return Math.max(FASTEST, this.#period / Math.min(4, 1 + waiting / 6));
  }
}
