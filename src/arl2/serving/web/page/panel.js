// One stream on the page: its picture, the points it can go back to, its prompts, and what can be done with it.

import { drawSeed, duration, make, megabytes, partsOf, percentile, saveAs, setText } from "./dom.js";
import { Player } from "./player.js";

const HINTS = {
  soft: "Soft: what the model remembers stays; only the words are new. For small changes.",
  refresh: "Refresh: what it remembers is read again under the new words. For changes of what is visible.",
  cut: "Cut: the last picture begins a new scene. For another scene.",
};
const FIGURES = [
  ["block", "Block time"], ["rate", "Frames made"], ["memory", "Memory"],
  ["viewers", "Viewers"], ["delay", "Delay"], ["mode", "Playing"],
];
const RECEIPTS = 4; // shown
const KEPT_RECEIPTS = 200; // for reports
const THUMB = 96; // pixels a side at most
const STALE = 1.5; // seconds behind the server at which "newest picture" is offered

/**
 * `page` gives api, facts (of the model), alert(text), forked(panel, stream), closed(panel), gone(panel), locked().
 */
export class Panel {
  info = null;
  receipts = [];
  #page;
  #parts;
  #player;
  #state = "connecting";
  #thumbs = new Map(); // by block: small canvases
  #keys = new Map(); // of own commands: {prompt, sent}
  #count = 0;
  #name = `${Date.now().toString(36)}${drawSeed()}`;
  #points = [];
  #chosen = null; // block of the point that is chosen; null: now
  #since; // of the click that opened it
  #firstPicture = null; // milliseconds after it
  #thumbed = -1;
  #confirming = null;
  #cuts = new Set();

  constructor(page, template, stream, { after = null, since = performance.now() } = {}) {
    this.#page = page;
    this.stream = stream;
    this.#since = since;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.#parts = partsOf(this.element);
    this.#build();
    this.#player = new Player(page.api, stream, {
      canvas: this.#parts.canvas, video: this.#parts.video, after,
      on: {
        state: (kind, text) => this.#setState(kind, text),
        info: (info) => this.setInfo(info),
        receipt: (receipt) => this.#receipt(receipt),
        picture: (frame, head) => this.#picture(frame, head),
        error: (text) => page.alert(text),
        locked: () => page.locked(),
      },
    });
  }

  /** What tests and curious people read: window.arl2. */
  get report() {
    const player = this.#player;
    const { surface } = player;
    return {
      stream: this.stream, connection: this.#state, state: this.info?.state ?? null, mode: player.mode,
      frame: player.frame, block: player.block, pictures: player.pictures,
      shown: () => [...player.shown], delays: () => [...player.delays],
      width: surface.videoWidth ?? surface.width, height: surface.videoHeight ?? surface.height,
      firstPicture: this.#firstPicture, prompt: this.info?.prompt ?? null, figures: { ...this.info?.figures },
      points: this.#points.map(({ block }) => block), receipts: this.receipts.map((receipt) => ({ ...receipt })),
      cuts: [...this.#cuts],
    };
  }

  reconnect() {
    this.#player.reconnect();
  }

  close() {
    clearTimeout(this.#confirming);
    this.#player.close();
    this.element.remove();
  }

  focusPrompt() {
    this.#parts.promptField.focus();
    this.#parts.promptField.select();
  }

  togglePause() {
    this.#parts.pause.click();
  }

  /** Move the slider by so many points. */
  choose(by) {
    const { slider } = this.#parts;
    slider.focus();
    slider.value = String(Number(slider.value) + by);
    this.#chose();
  }

  #build() {
    const { form, modes, modeHint, figures, promptField, slider, panelExamples } = this.#parts;
    const id = `panel-${this.stream}-${drawSeed()}`;
    promptField.id = `${id}-prompt`;
    this.#parts.promptLabel.htmlFor = promptField.id;
    const { mode: usual, examples } = this.#page.facts;
    for (const radio of modes.querySelectorAll("input")) {
      radio.name = `${id}-mode`;
      radio.checked = radio.value === usual;
    }
    modes.addEventListener("change", () => setText(modeHint, HINTS[this.#mode()]));
    setText(modeHint, HINTS[usual]);
    for (const [name, label] of FIGURES) {
      const value = make("dd", { text: "–" });
      this.#parts[`figure-${name}`] = value;
      figures.append(make("div", {}, make("dt", { text: label }), value));
    }
    for (const example of examples) {
      const chip = make("button", { className: "chip", text: example, type: "button" });
      chip.addEventListener("click", () => this.#use(example));
      panelExamples.append(chip);
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#change();
    });
    promptField.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      } else if (event.key === "Escape") promptField.blur();
    });
    slider.addEventListener("input", () => this.#chose());
    slider.addEventListener("blur", () => this.#showBubble(false));
    slider.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !this.#parts.rewind.disabled) this.#parts.rewind.click();
    });
    const clicks = {
      pause: () => this.#give(this.info?.state === "paused" ? "play" : "pause"),
      rewind: () => this.#rewind(), fork: () => this.#fork(), skip: () => this.#player.skip(),
      save: () => this.#save(), download: () => this.#download(), stop: () => this.#stop(),
      close: () => this.#page.closed(this),
    };
    for (const [name, act] of Object.entries(clicks)) {
      this.#parts[name].addEventListener("click", (event) => this.#busy(event.currentTarget, act));
    }
    this.#badge();
  }

  /** Do something with its button disabled, and say what went wrong. */
  async #busy(button, act) {
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    try {
      await act();
    } catch (error) {
      if (error.status === 401) this.#page.locked();
      else this.#page.alert(error.message);
    } finally {
      button.removeAttribute("aria-busy");
    }
  }

  #mode() {
    return this.#parts.modes.querySelector("input:checked").value;
  }

  #use(prompt) {
    this.#parts.promptField.value = prompt;
    this.#parts.promptField.focus();
  }

  /** Refusals are shown among the receipts, where the command itself is. */
  async #give(action, values = {}, prompt = "") {
    const key = `${this.#name}-${(this.#count += 1)}`;
    this.#keys.set(key, { prompt, sent: performance.now() });
    try {
      const receipt = await this.#player.give(action, key, values);
      if (!this.receipts.some((one) => one.key === key && one.state === receipt.state)) this.#receipt(receipt);
      return receipt;
    } catch (error) {
      if (this.receipts.some((one) => one.key === key && one.state === "refused")) return null;
      throw error;
    }
  }

  #change() {
    const { promptField, send } = this.#parts;
    const prompt = promptField.value.trim();
    if (!prompt) return;
    this.#busy(send, async () => {
      const receipt = await this.#give("prompt", { prompt, mode: this.#mode() }, prompt);
      if (receipt !== null && promptField.value.trim() === prompt) promptField.value = "";
    });
  }

  #seed() {
    return this.#parts.otherNoise.checked ? { seed: drawSeed() } : {};
  }

  async #rewind() {
    if (this.#chosen === null) return;
    await this.#give("rewind", { block: this.#chosen, ...this.#seed() });
    this.#chosen = null;
    this.#showPoints();
  }

  async #fork() {
    const at = this.#chosen === null ? {} : { block: this.#chosen };
    const receipt = await this.#give("fork", { ...at, ...this.#seed() });
    if (receipt?.fork) this.#page.forked(this, receipt.fork);
  }

  async #save() {
    const at = this.#chosen;
    const blob = await this.#page.api.snapshot(this.stream, at);
    saveAs(blob, `arl2-${this.stream}-block-${at ?? this.info?.block ?? "now"}.arl2`);
  }

  async #download() {
    saveAs(await this.#page.api.video(this.stream), `arl2-${this.stream}.mp4`);
  }

  async #stop() {
    const { stop } = this.#parts;
    const label = stop.lastChild;
    const ask = this.#confirming === null;
    clearTimeout(this.#confirming);
    this.#confirming = null;
    if (ask) {
      label.textContent = "Remove it?";
      stop.classList.add("sure");
      this.#confirming = setTimeout(() => {
        label.textContent = "Stop";
        stop.classList.remove("sure");
        this.#confirming = null;
      }, 4000);
      return;
    }
    await this.#page.api.remove(this.stream);
    this.#page.gone(this);
  }

  #setState(kind, text) {
    if (kind === this.#state && (kind === "live" || text === this.#parts.messageText.textContent)) return;
    this.#state = kind;
    const { message, messageText, messageButton } = this.#parts;
    const shown = kind === "connecting" && !text ? this.#waitingFor() : text;
    message.hidden = !shown;
    setText(messageText, shown);
    messageButton.hidden = !(kind === "lost" || kind === "refused" || kind === "ended");
    messageButton.textContent = kind === "lost" ? "Try now" : "Close";
    messageButton.onclick = () => (kind === "lost" ? this.#player.reconnect() : this.#page.closed(this));
    this.element.dataset.connection = kind;
    this.#badge();
  }

  #waitingFor() {
    return this.info?.state === "paused" ? "Paused. Play to see how it continues." : "Making the first pictures …";
  }

  #badge() {
    const state = this.#state === "live" ? (this.info?.state ?? "running") : this.#state;
    const words = {
      running: "Live", paused: "Paused", asleep: "Asleep", ended: "Ended", failed: "Failed", lost: "Offline",
      refused: "Closed", connecting: "Starting",
    };
    this.#parts.badge.dataset.state = state;
    setText(this.#parts.badge, words[state] ?? state);
    const paused = this.info?.state === "paused";
    const { pause } = this.#parts;
    pause.querySelector("use").setAttribute("href", paused ? "#i-play" : "#i-pause");
    pause.setAttribute("aria-label", paused ? "Play" : "Pause");
    pause.title = paused ? "Play (space)" : "Pause (space)";
  }

  setInfo(info) {
    this.info = info;
    const { stage, prompt, origin, canvas } = this.#parts;
    stage.style.setProperty("--ratio", String(info.width / info.height));
    this.element.style.setProperty("--ratio", String(info.width / info.height));
    setText(prompt, info.prompt);
    canvas.setAttribute("aria-label", `Video: ${info.prompt}`);
    const words = [info.id, `seed ${info.request.seed}`];
    if (info.parent) words.push(`forked from ${info.parent}`);
    setText(origin, words.join(" · "));
    const { figures } = info;
    setText(this.#parts["figure-block"], figures.block_seconds ? `${Math.round(figures.block_seconds * 1000)} ms` : "–");
    setText(this.#parts["figure-rate"], figures.frames_a_second ? `${figures.frames_a_second.toFixed(0)} / s` : "–");
    setText(this.#parts["figure-memory"], megabytes(figures.memory_bytes));
    setText(this.#parts["figure-viewers"], String(info.viewers));
    const delay = percentile(this.#player?.delays.slice(-48) ?? [], 0.5);
    setText(this.#parts["figure-delay"], delay === null ? "–" : `${Math.max(0, Math.round(delay))} ms`);
    setText(this.#parts["figure-mode"], this.#player?.mode || "–");
    this.#parts.skip.hidden = !(delay > STALE * 1000);
    this.#points = info.points;
    this.#showPoints();
    this.#showHistory(info.prompts);
    this.#forgetThumbs(info);
    this.#badge();
    if (this.#state === "connecting") setText(this.#parts.messageText, this.#waitingFor());
    if (info.state === "failed") this.#setState("ended", info.error ?? "The stream failed.");
  }

  #chose() {
    const point = this.#points[Number(this.#parts.slider.value)];
    this.#chosen = point?.block ?? null;
    this.#showPlace();
    this.#showBubble(true);
  }

  #showPoints() {
    const { slider, ticks } = this.#parts;
    const points = this.#points;
    if (this.#chosen !== null && !points.some(({ block }) => block === this.#chosen)) this.#chosen = null;
    slider.max = String(points.length);
    const at = points.findIndex(({ block }) => block === this.#chosen);
    slider.value = String(at < 0 ? points.length : at);
    slider.disabled = points.length === 0;
    while (ticks.childElementCount > points.length + 1) ticks.lastElementChild.remove();
    while (ticks.childElementCount < points.length + 1) ticks.append(make("i"));
    for (const [i, tick] of [...ticks.children].entries()) {
      tick.classList.toggle("turn", i > 0 && i < points.length && points[i].prompt !== points[i - 1].prompt);
      tick.classList.toggle("now", i === points.length);
    }
    this.#showPlace();
  }

  #showPlace() {
    const { slider, rewind, fork, place } = this.#parts;
    const point = this.#points.find(({ block }) => block === this.#chosen);
    rewind.disabled = point === undefined;
    let text = this.info === null ? "" : `Now: block ${this.info.block}`;
    if (point !== undefined) {
      const back = Math.max(0, (this.info.frame - point.frame) / this.info.fps);
      text = `Block ${point.block}, ${duration(back)} back`;
    }
    setText(place, text);
    slider.setAttribute("aria-valuetext", point === undefined ? "now" : `${text}: ${point.prompt}`);
    fork.title = point === undefined ? "Two futures from now on, side by side" : "Two futures from this point on";
    const share = Number(slider.max) ? Number(slider.value) / Number(slider.max) : 1;
    this.#parts.stage.parentElement.style.setProperty("--at", String(share));
  }

  #showBubble(wanted) {
    const { bubble, bubblePicture } = this.#parts;
    const thumb = this.#thumbs.get(this.#chosen - 1) ?? this.#thumbs.get(this.#chosen);
    bubble.hidden = !wanted || thumb === undefined;
    if (bubble.hidden) return;
    bubblePicture.width = thumb.width;
    bubblePicture.height = thumb.height;
    bubblePicture.getContext("2d").drawImage(thumb, 0, 0);
  }

  #showHistory(prompts) {
    const { history } = this.#parts;
    const wanted = prompts.map(([block, prompt]) => `${block} ${prompt}`).join("\n");
    if (history.dataset.shown !== wanted) {
      history.dataset.shown = wanted;
      history.replaceChildren(...prompts.map(([block, prompt]) => {
        const picture = make("canvas", { width: THUMB, height: THUMB, "aria-hidden": "true" });
        picture.dataset.block = String(block);
        const words = make("span", {}, make("b", { text: prompt }), make("small", { text: `from block ${block}` }));
        const button = make("button", { type: "button", title: "Use again" }, picture, words);
        button.addEventListener("click", () => this.#use(prompt));
        return make("li", {}, button);
      }).reverse());
    }
    for (const picture of history.querySelectorAll("canvas:not([data-drawn])")) {
      const thumb = this.#thumbs.get(Number(picture.dataset.block));
      if (thumb === undefined) continue;
      picture.width = thumb.width;
      picture.height = thumb.height;
      picture.getContext("2d").drawImage(thumb, 0, 0);
      picture.dataset.drawn = "";
    }
  }

  #picture(frame, head) {
    if (this.#firstPicture === null) {
      this.#firstPicture = performance.now() - this.#since;
      this.element.classList.add("shows");
    }
    for (const receipt of this.receipts) {
      if (receipt.action !== "prompt" || receipt.state !== "applied" || receipt.seen !== undefined) continue;
      if (frame.block < receipt.block || !this.#keys.has(receipt.key)) continue;
      receipt.seen = performance.now() - this.#keys.get(receipt.key).sent;
      this.#write(receipt);
    }
    if (head?.cut) this.#cuts.add(head.block);
    const { surface } = this.#player;
    // The end of a block: its beginning still looks like the one before.
    const near = head === undefined || frame.frame >= head.frame + head.frames - 2;
    if (near && frame.block !== this.#thumbed) {
      this.#thumbed = frame.block;
      const ratio = this.info ? this.info.width / this.info.height : 1;
      const thumb = make("canvas", {
        width: Math.round(THUMB * Math.min(1, ratio)), height: Math.round(THUMB / Math.max(1, ratio)),
      });
      thumb.getContext("2d").drawImage(surface, 0, 0, thumb.width, thumb.height);
      this.#thumbs.set(frame.block, thumb);
      this.#shine(thumb);
    }
  }

  /** The picture's mean colour, as light around it. */
  #shine(thumb) {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(thumb, 0, 0, 1, 1);
    const [red, green, blue] = context.getImageData(0, 0, 1, 1).data.map((value) => value & 0xf0);
    this.#parts.stage.style.setProperty("--glow", `rgb(${red} ${green} ${blue} / 0.35)`);
  }

  /** Small pictures are kept of points, of prompts, and of what may become one of them. */
  #forgetThumbs(info) {
    const wanted = new Set([0, ...info.points.map(({ block }) => block - 1), ...info.prompts.map(([block]) => block)]);
    for (const block of this.#thumbs.keys()) {
      if (!wanted.has(block) && block < info.block - 16) this.#thumbs.delete(block);
    }
  }

  #receipt(receipt) {
    const before = this.receipts.findIndex(({ key }) => key === receipt.key);
    if (before >= 0) this.receipts.splice(before, 1);
    this.receipts.push(receipt);
    if (this.receipts.length > KEPT_RECEIPTS) this.receipts.shift();
    if (receipt.state === "applied" && this.info !== null) {
      if (receipt.action === "pause") this.info.state = "paused";
      if (receipt.action === "play") this.info.state = "running";
      this.#badge();
    }
    this.#write(receipt);
  }

  #write(receipt) {
    const { receipts } = this.#parts;
    const [what, told] = wordsOf(receipt, this.#keys.get(receipt.key));
    let line = [...receipts.children].find((one) => one.dataset.key === receipt.key);
    if (line === undefined) {
      if (receipt.seen !== undefined) return; // newer ones have taken its place
      line = make("li");
      line.dataset.key = receipt.key;
      receipts.prepend(line);
    }
    line.dataset.state = receipt.state;
    line.replaceChildren(make("b", { text: what }), make("span", { text: told }));
    if (receipt.fork) line.append(make("a", { href: `#${this.stream}+${receipt.fork}`, text: "Side by side" }));
    while (receipts.childElementCount > RECEIPTS) receipts.lastElementChild.remove();
  }
}

/** What a receipt says: the command, and what became of it. */
function wordsOf(receipt, own) {
  const names = { prompt: "New prompt", pause: "Pause", play: "Play", rewind: "Rewind", fork: "Fork" };
  const what = (own ? "" : "Another viewer: ") + (own?.prompt || names[receipt.action]);
  if (receipt.state === "refused") return [what, receipt.error ?? "refused"];
  if (receipt.state === "queued") return [what, "waits for the next block"];
  if (receipt.action === "fork") return [what, `as ${receipt.fork}`];
  if (receipt.action === "rewind") return [what, `to block ${receipt.to}, shown as block ${receipt.block}`];
  if (receipt.action === "pause") return [what, `before block ${receipt.block}`];
  const seen = receipt.seen === undefined ? "" : `, seen after ${duration(receipt.seen / 1000)}`;
  return [what, `from block ${receipt.block}${seen}`];
}
