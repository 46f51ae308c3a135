// The page: what the directory holds, one output of it playing, and its state.

import { type Listing, type Output, fetchListing, inputNames, mediaURL } from "./api";
import { Controls } from "./controls";
import { byId, create } from "./dom";
import { type Engine, type Mode, load } from "./engine";
import { baseName, bytes, clock } from "./format";
import { Gallery } from "./gallery";
import { Watch } from "./watch";

/** What window.volley.state() gives to tests. */
interface State {
  mode: Mode | "";
  currentTime: number;
  /** What can be played now; grows while the run goes on. */
  duration: number;
  growing: boolean;
  stalls: number;
  waits: number;
  errors: string[];
  ended: boolean;
  paused: boolean;
  buffered: [number, number][];
  segments: number;
  droppedFrames: number;
  width: number;
  height: number;
}

declare global {
  interface Window {
    volley: { state(): State };
  }
}

const POLL_MS = 2000;
const REFRESH_MS = 250;
/** A run that publishes nothing for this long is worth a word. */
const IDLE_SECONDS = 120;
const MODES: [Mode, string, string][] = [
  ["dash", "DASH", "manifest.mpd"],
  ["hls", "HLS", "playlist.m3u8"],
  ["mp4", "MP4", "output.mp4"],
];

class App {
  private readonly video = byId<HTMLVideoElement>("video");
  private readonly watch = new Watch(this.video, () => this.engine);
  private readonly controls = new Controls(this.video, () => this.extent());
  private readonly gallery = new Gallery(() =>
    this.mode ? (seconds) => this.playFrom(seconds) : undefined,
  );
  private readonly query = new URLSearchParams(location.search);
  private listing: Listing | undefined;
  private engine: Engine | undefined;
  private mode: Mode | "" = "";
  private outputPath: string | undefined;
  private segments = 0;
  private errors: string[] = [];
  private attaching = 0;

  async run(): Promise<void> {
    this.video.muted = this.query.has("muted");
    setInterval(() => this.refresh(), REFRESH_MS);
    for (;;) {
      try {
        this.show(await fetchListing());
        this.notice("server", "");
      } catch (error) {
        this.notice("server", `The server does not answer (${text(error)}).`, "Start volley serve again; this page goes on by itself.");
      }
      if (this.listing && this.listing.state !== "running") return;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  state(): State {
    const { video, watch } = this;
    const buffered: [number, number][] = [];
    for (let i = 0; i < video.buffered.length; i++) buffered.push([video.buffered.start(i), video.buffered.end(i)]);
    const { end, growing } = this.extent();
    return {
      mode: this.mode,
      currentTime: video.currentTime,
      duration: Number.isFinite(end) ? end : 0,
      growing,
      stalls: watch.stalls,
      waits: watch.waits,
      errors: [...this.errors],
      ended: video.ended,
      paused: video.paused,
      buffered,
      segments: this.segments,
      droppedFrames: video.getVideoPlaybackQuality?.().droppedVideoFrames ?? 0,
      width: video.videoWidth,
      height: video.videoHeight,
    };
  }

  /** How much can be played: what the run has published, or all there is. */
  private extent(): { end: number; growing: boolean } {
    const growing = this.engine?.growing() ?? false;
    const { duration } = this.video;
    if (!growing && Number.isFinite(duration)) return { end: duration, growing };
    return { end: this.engine?.published() ?? NaN, growing };
  }

  private show(listing: Listing): void {
    this.listing = listing;
    byId("main").hidden = false;
    const { result } = listing;
    const names = inputNames(listing);
    const title = result?.pipeline ? baseName(result.pipeline).replace(/\.json$/, "") : listing.name;
    byId("title").textContent = title;
    document.title = `${title} – Volley`;
    const inputs = byId("inputs");
    inputs.textContent = names.map(baseName).join(", ");
    inputs.title = names.join("\n");
    const badge = byId("badge");
    badge.hidden = false;
    badge.className = `badge ${listing.state}`;
    badge.textContent = { running: "computing", finished: "finished", stopped: "stopped early" }[listing.state];

    if (listing.state === "stopped") {
      this.notice("run", `The run ended before everything was there${result?.error ? `: ${result.error}` : ""}.`, "What was finished can be played. Run the same command again to go on.");
    } else if (listing.state === "running" && listing.idle_seconds > IDLE_SECONDS) {
      this.notice("run", `Nothing new for ${clock(listing.idle_seconds)}.`, "Look at the terminal of volley run: it may have been stopped. Run the same command again to go on.");
    } else if (listing.outputs.length === 0) {
      this.notice("run", "Nothing to play yet.", listing.state === "running" ? "The first piece appears here when it is computed." : "The run made no output: look at the terminal of volley run.");
    } else this.notice("run", "");
    this.showOutput();
  }

  private current(): Output | undefined {
    const outputs = this.listing?.outputs ?? [];
    const wanted = this.query.get("output");
    return (
      outputs.find((o) => o.path === this.outputPath) ??
      outputs.find((o) => o.name === wanted || o.name === `output_${wanted}`) ??
      outputs[0]
    );
  }

  private showOutput(): void {
    const output = this.current();
    const outputs = this.listing?.outputs ?? [];
    byId("outputsSection").hidden = outputs.length < 2;
    byId("outputs").replaceChildren(
      ...outputs.map((o) => {
        const button = create("button", { type: "button" }, create("strong", {}, o.name), create("span", {}, o.formats.join(" · ")));
        button.setAttribute("aria-pressed", String(o === output));
        button.addEventListener("click", () => this.choose(o));
        return create("li", {}, button);
      }),
    );
    this.gallery.show(output);
    byId("downloadsSection").hidden = !output?.files.length;
    byId("downloads").replaceChildren(
      ...(output?.files ?? []).map((f) => {
        const link = create("a", { href: mediaURL(output!, f.name), download: f.name }, f.name);
        return create("li", {}, link, create("span", { className: "muted" }, bytes(f.size_bytes)));
      }),
    );
    if (!output) return;
    const modes = MODES.filter(([mode]) => output.formats.includes(mode));
    byId("stage").hidden = byId("keyHelp").hidden = modes.length === 0;
    if (output.path !== this.outputPath || (this.mode === "" && modes.length > 0)) {
      this.outputPath = output.path;
      const wanted = modes.find(([mode]) => mode === this.query.get("mode")) ?? modes[0];
      void this.play(wanted?.[0] ?? "", 0, this.query.has("autoplay"));
    }
    this.showModes(modes);
  }

  private showModes(modes: typeof MODES): void {
    const group = byId("modes");
    group.hidden = modes.length < 2;
    if (group.dataset["key"] === modes.join() + this.mode) return;
    const focused = group.contains(document.activeElement);
    group.dataset["key"] = modes.join() + this.mode;
    group.replaceChildren(
      ...modes.map(([mode, label], i) => {
        const chosen = mode === this.mode;
        const button = create("button", { type: "button", tabIndex: chosen ? 0 : -1 }, label);
        button.setAttribute("role", "radio");
        button.setAttribute("aria-checked", String(chosen));
        const choose = (m: Mode) => {
          this.query.set("mode", m);
          history.replaceState(null, "", `?${this.query}`);
          void this.play(m, this.video.currentTime, !this.video.paused);
          this.showModes(modes);
        };
        button.addEventListener("click", () => choose(mode));
        button.addEventListener("keydown", (event) => {
          const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (step) choose(modes[(i + step + modes.length) % modes.length]![0]);
        });
        return button;
      }),
    );
    if (focused) group.querySelector<HTMLElement>("[aria-checked=true]")?.focus();
  }

  private choose(output: Output): void {
    if (output.path === this.outputPath) return;
    this.query.set("output", output.name);
    this.query.delete("autoplay");
    history.replaceState(null, "", `?${this.query}`);
    this.video.pause();
    this.outputPath = undefined;
    this.showOutput();
  }

  private playFrom(seconds: number): void {
    this.controls.seek(seconds);
    byId("stage").scrollIntoView({ behavior: "smooth", block: "nearest" });
    this.video.play().catch(() => undefined);
  }

  /** Plays the current output in another mode, from where playback was. */
  private async play(mode: Mode | "", from: number, autoplay: boolean): Promise<void> {
    const turn = ++this.attaching;
    const output = this.current();
    this.engine?.destroy();
    this.engine = undefined;
    this.mode = mode;
    this.segments = 0;
    this.errors = [];
    this.watch.reset();
    this.notice("player", "");
    if (!mode || !output) return;
    const file = MODES.find(([m]) => m === mode)![2];
    try {
      const attach = await load(mode);
      if (turn !== this.attaching) return;
      const engine = await attach(this.video, mediaURL(output, file), {
        segment: () => this.segments++,
        error: (what, advice) => {
          if (turn === this.attaching) this.fail(what, advice);
        },
      });
      if (turn !== this.attaching) {
        engine.destroy();
        return;
      }
      this.engine = engine;
      await new Promise((resolve) => this.video.addEventListener("loadedmetadata", resolve, { once: true }));
      if (turn !== this.attaching) return;
      if (from > 0) this.controls.seek(from);
      if (autoplay) await this.video.play();
    } catch (error) {
      // A browser that refuses to start by itself shows the play button.
      if (error instanceof DOMException && ["NotAllowedError", "AbortError"].includes(error.name)) return;
      if (turn === this.attaching) this.fail(`The player did not start: ${text(error)}.`, "Reload the page, or choose another format.");
    }
  }

  private fail(what: string, advice: string): void {
    if (!this.errors.includes(what)) this.errors.push(what);
    this.notice("player", what, advice);
  }

  /** Shows a notice in the place called key; an empty text takes it away. */
  private notice(key: string, what: string, advice = ""): void {
    const all = byId("notices");
    byId("main").hidden = false;
    let place = all.querySelector<HTMLElement>(`[data-key=${key}]`);
    if (!what) {
      place?.remove();
      return;
    }
    if (!place) {
      place = create("p", { className: key === "run" ? "notice" : "notice warn" });
      place.dataset["key"] = key;
      all.append(place);
    }
    const whole = `${what} ${advice}`.trim();
    if (place.textContent !== whole) place.replaceChildren(create("strong", {}, what), ` ${advice}`);
  }

  private refresh(): void {
    this.controls.update();
    byId("spinner").hidden = !this.watch.starved || this.errors.length > 0;
    if (!this.mode) return;
    const s = this.state();
    const caught = this.watch.starved && s.growing && s.currentTime >= s.duration - 0.5;
    const doing = s.errors.length
      ? "failed"
      : s.ended
        ? "ended"
        : caught
          ? "waiting for the run"
          : this.watch.starved
            ? "loading"
            : s.paused
              ? "paused"
              : "playing";
    const rows: [string, string][] = [
      ["State", doing],
      ["Length", s.duration ? clock(s.duration, s.duration < 60) + (s.growing ? " so far" : "") : "–"],
      ["Picture", s.width ? `${s.width} × ${s.height}` : "–"],
    ];
    if (this.mode !== "mp4") rows.push(["Segments", String(s.segments)]);
    rows.push(["Dropped", String(s.droppedFrames)], ["Stalls", String(s.stalls)]);
    const status = byId("status");
    const key = rows.join();
    if (status.dataset["key"] === key) return;
    status.dataset["key"] = key;
    status.replaceChildren(...rows.map(([name, value]) => create("div", {}, create("dt", {}, name), create("dd", {}, value))));
  }
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

const app = new App();
window.volley = { state: () => app.state() };
void app.run();
