// Watches a video element: does playback run, and if not, whose fault is it?

import type { Engine } from "./engine";

/** Playback this close to what is published has caught up with the run. */
const EDGE_SECONDS = 0.5;

export class Watch {
  /** Playback stopped although more was published. */
  stalls = 0;
  /** Playback stopped because the run had not published more. */
  waits = 0;
  /** True while the element wants to play and cannot. */
  starved = false;
  private moving = false;

  constructor(
    private readonly video: HTMLVideoElement,
    private readonly engine: () => Engine | undefined,
  ) {
    video.addEventListener("waiting", () => this.waiting());
    video.addEventListener("playing", () => {
      this.starved = false;
      this.moving = true;
    });
    video.addEventListener("timeupdate", () => {
      if (video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA) this.starved = false;
    });
    // The pause until a seek has data is expected.
    video.addEventListener("seeking", () => (this.moving = false));
    video.addEventListener("emptied", () => this.reset());
    for (const name of ["pause", "ended"]) video.addEventListener(name, () => (this.starved = false));
  }

  reset(): void {
    this.stalls = this.waits = 0;
    this.starved = this.moving = false;
  }

  private waiting(): void {
    this.starved = true;
    if (!this.moving || this.video.seeking) return;
    this.moving = false;
    const engine = this.engine();
    const end = engine?.published() ?? NaN;
    const atEnd = this.video.currentTime >= end - EDGE_SECONDS;
    if (atEnd && engine?.growing()) this.waits++;
    // An element may say that it waits just before it says that it ended.
    else if (!(this.video.currentTime >= this.video.duration - 0.1)) this.stalls++;
  }
}
