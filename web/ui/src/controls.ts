// The control bar below the picture, and the keys.

import { byId, setIcon } from "./dom";
import { clock } from "./format";

export interface Extent {
  /** The end of what can be played now, in seconds; NaN while not known. */
  end: number;
  growing: boolean;
}

const FRAME_SECONDS = 1 / 25;
const HIDE_AFTER_MS = 2500;

export class Controls {
  private readonly screen = byId("screen");
  private readonly bigPlay = byId<HTMLButtonElement>("bigplay");
  private readonly playButton = byId<HTMLButtonElement>("play");
  private readonly muteButton = byId<HTMLButtonElement>("mute");
  private readonly volume = byId<HTMLInputElement>("volume");
  private readonly seekBar = byId<HTMLInputElement>("seek");
  private readonly track = byId<HTMLCanvasElement>("track");
  private readonly time = byId("time");
  private readonly speed = byId<HTMLSelectElement>("speed");
  private readonly full = byId<HTMLButtonElement>("full");
  private hideTimer = 0;

  constructor(
    private readonly video: HTMLVideoElement,
    private readonly extent: () => Extent,
  ) {
    setIcon(this.bigPlay, "play");
    for (const element of [this.bigPlay, this.playButton, video]) element.addEventListener("click", () => this.toggle());
    this.muteButton.addEventListener("click", () => (video.muted = !video.muted));
    this.volume.addEventListener("input", () => {
      video.volume = Number(this.volume.value);
      video.muted = video.volume === 0;
    });
    this.seekBar.addEventListener("input", () => (video.currentTime = Number(this.seekBar.value)));
    this.speed.addEventListener("change", () => (video.playbackRate = Number(this.speed.value)));
    video.addEventListener("loadedmetadata", () => (video.playbackRate = Number(this.speed.value)));
    this.full.addEventListener("click", () => this.toggleFull());
    for (const name of ["pointermove", "pointerdown", "focusin"]) this.screen.addEventListener(name, () => this.wake());
    for (const name of ["play", "pause", "ended", "volumechange"]) video.addEventListener(name, () => this.wake());
    document.addEventListener("keydown", (event) => this.key(event));
    this.update();
  }

  toggle(): void {
    if (!this.video.paused) {
      this.video.pause();
      return;
    }
    if (this.video.ended) this.video.currentTime = 0;
    // A refusal (no data yet, autoplay rules) leaves the play button in view.
    this.video.play().catch(() => undefined);
  }

  seek(seconds: number): void {
    const { end } = this.extent();
    this.video.currentTime = Math.max(0, Number.isFinite(end) ? Math.min(seconds, end) : seconds);
  }

  /** Shows where the element is now; called a few times a second. */
  update(): void {
    const video = this.video;
    const { end, growing } = this.extent();
    const now = video.currentTime;
    const known = Number.isFinite(end) && end > 0;
    const max = known ? Math.max(end, now) : now;
    this.seekBar.max = String(max);
    if (!this.seekBar.matches(":active")) this.seekBar.value = String(now);
    this.seekBar.setAttribute("aria-valuetext", `${clock(now)} of ${clock(max)}`);
    const tenths = known && end < 60;
    this.time.textContent = `${clock(now, tenths)} / ${known ? clock(end, tenths) : "–:––"}${growing && known ? " so far" : ""}`;
    const playing = !video.paused && !video.ended;
    setIcon(this.playButton, playing ? "pause" : "play");
    this.playButton.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.bigPlay.hidden = playing || now > 0;
    const silent = video.muted || video.volume === 0;
    setIcon(this.muteButton, silent ? "silent" : "loud");
    this.muteButton.setAttribute("aria-label", silent ? "Sound on" : "Sound off");
    this.volume.value = String(silent ? 0 : video.volume);
    const inFull = document.fullscreenElement !== null;
    setIcon(this.full, inFull ? "small" : "full");
    this.full.setAttribute("aria-label", inFull ? "Leave full screen" : "Full screen");
    this.draw(max, now);
  }

  private draw(max: number, now: number): void {
    const ratio = devicePixelRatio || 1;
    const width = Math.round(this.track.clientWidth * ratio);
    const height = Math.round(this.track.clientHeight * ratio);
    if (width === 0) return;
    if (this.track.width !== width || this.track.height !== height) {
      this.track.width = width;
      this.track.height = height;
    }
    const context = this.track.getContext("2d");
    if (!context) return;
    const styles = getComputedStyle(this.track);
    const bar = (from: number, to: number, colour: string) => {
      context.fillStyle = styles.getPropertyValue(colour);
      context.fillRect((from / max) * width, 0, ((to - from) / max) * width, height);
    };
    context.clearRect(0, 0, width, height);
    context.fillStyle = styles.getPropertyValue("--track");
    context.fillRect(0, 0, width, height);
    if (max <= 0) return;
    const { buffered } = this.video;
    for (let i = 0; i < buffered.length; i++) bar(buffered.start(i), Math.min(buffered.end(i), max), "--buffered");
    bar(0, Math.min(now, max), "--played");
  }

  private wake(): void {
    this.screen.classList.remove("idle");
    clearTimeout(this.hideTimer);
    this.hideTimer = window.setTimeout(() => {
      if (!this.video.paused && !this.screen.querySelector(":focus-visible")) this.screen.classList.add("idle");
    }, HIDE_AFTER_MS);
  }

  private toggleFull(): void {
    if (document.fullscreenElement) void document.exitFullscreen();
    else this.screen.requestFullscreen?.().catch(() => undefined);
  }

  private key(event: KeyboardEvent): void {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]") || byId("stage").hidden) return;
    const target = event.target as HTMLElement;
    // Controls keep their own keys.
    if (target instanceof HTMLSelectElement) return;
    if (event.key === " " && target.closest("button, a, input")) return;
    if (target.matches("input[type=range]") && event.key.startsWith("Arrow") && target !== this.seekBar) return;
    if (target.getAttribute("role") === "radio" && event.key.startsWith("Arrow")) return;
    if (!this.act(event.key)) return;
    this.wake();
    event.preventDefault();
  }

  private act(key: string): boolean {
    const now = this.video.currentTime;
    switch (key) {
      case " ":
      case "k":
        this.toggle();
        return true;
      case "ArrowLeft":
        this.seek(now - 5);
        return true;
      case "ArrowRight":
        this.seek(now + 5);
        return true;
      case "j":
        this.seek(now - 10);
        return true;
      case "l":
        this.seek(now + 10);
        return true;
      case ",":
      case ".":
        this.video.pause();
        this.seek(now + (key === "," ? -FRAME_SECONDS : FRAME_SECONDS));
        return true;
      case "m":
        this.video.muted = !this.video.muted;
        return true;
      case "f":
        this.toggleFull();
        return true;
      case "Home":
        this.seek(0);
        return true;
      case "End":
        this.seek(this.extent().end);
        return true;
    }
    if (/^[0-9]$/.test(key)) {
      this.seek((this.extent().end * Number(key)) / 10);
      return true;
    }
    return false;
  }
}
