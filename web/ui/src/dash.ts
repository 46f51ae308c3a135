// MPEG-DASH by dash.js.

import { Debug, MediaPlayer, type MediaPlayerClass } from "dashjs";
import { type Attach, loadAdvice } from "./engine";

/** What the manifest says about its length, read beside dash.js. */
interface Extent {
  dynamic: boolean;
  end: number;
}

export const attach: Attach = async (video, url, listener) => {
  const player = MediaPlayer().create();
  let extent: Extent = { dynamic: true, end: NaN };
  player.initialize();
  player.updateSettings({
    debug: { logLevel: Debug.LOG_LEVEL_NONE },
    streaming: {
      delay: { liveDelay: 0, useSuggestedPresentationDelay: false },
      liveCatchup: { enabled: false },
      // The clock of dash.js's choice is on the internet.
      utcSynchronization: { enabled: false },
      applyServiceDescription: false,
      buffer: { bufferTimeDefault: 20, bufferTimeAtTopQuality: 30, fastSwitchEnabled: false },
      text: { defaultEnabled: false },
    },
  });
  player.addResponseInterceptor((response) => {
    const kind = (response.request as { customData?: { request?: { type?: string } } }).customData?.request?.type;
    const text = manifestText(response.data);
    if (kind === "MPD" && text !== undefined) {
      const adapted = adapt(text);
      if (adapted) {
        extent = adapted.extent;
        response.data = adapted.text as never;
      }
    }
    return Promise.resolve(response);
  });
  player.on(MediaPlayer.events.FRAGMENT_LOADING_COMPLETED, (event) => {
    const e = event as { request?: { type?: string }; error?: unknown };
    if (e.request?.type === "MediaSegment" && !e.error) listener.segment();
  });
  player.on(MediaPlayer.events.ERROR, (event) => {
    const { error } = event as unknown as { error: DashError | string };
    report(error);
  });
  player.on(MediaPlayer.events.PLAYBACK_ERROR, (event) => {
    const { error } = event as unknown as { error: DashError | string };
    report(error);
  });

  function report(error: DashError | string): void {
    if (typeof error === "string") {
      listener.error(`DASH playback failed: ${error}.`, "Choose another format, or reload the page.");
      return;
    }
    const status = error.data?.response?.status;
    const file = error.data?.request?.url;
    if (file || status) {
      listener.error(`Could not load ${file ?? url}${status ? ` (HTTP ${status})` : ""}.`, loadAdvice(status || undefined));
    } else {
      const text = (error.message ?? `error ${error.code ?? "unknown"}`).replace(/[.\s]+$/, "");
      listener.error(`DASH playback failed: ${text}.`, "Choose another format, or reload the page.");
    }
  }

  player.attachView(video);
  player.setAutoPlay(false);
  player.attachSource(url, 0);
  return {
    published: () => extent.end,
    growing: () => extent.dynamic,
    destroy: () => destroy(player, video),
  };
};

interface DashError {
  code?: number;
  message?: string;
  data?: { request?: { url?: string }; response?: { status?: number } };
}

function destroy(player: MediaPlayerClass, video: HTMLVideoElement): void {
  player.destroy();
  video.removeAttribute("src");
  video.load();
}

function manifestText(data: unknown): string | undefined {
  if (typeof data === "string") return data;
  if (data instanceof ArrayBuffer) return new TextDecoder().decode(data);
  return undefined;
}

/**
 * Reads how far the manifest goes, and moves a growing presentation's start
 * into the past. A run is not a broadcast: it may compute faster or slower than
 * the video plays, and every segment that is listed can be had. With the start
 * of the run as it is, dash.js would hold back what the clock has not reached.
 */
function adapt(text: string): { text: string; extent: Extent } | undefined {
  const document = new DOMParser().parseFromString(text, "application/xml");
  const mpd = document.documentElement;
  if (mpd.localName !== "MPD") return undefined;
  const dynamic = mpd.getAttribute("type") === "dynamic";
  const fixed = isoSeconds(mpd.getAttribute("mediaPresentationDuration"));
  const extent = { dynamic, end: dynamic || Number.isNaN(fixed) ? timelineEnd(mpd) : fixed };
  if (!dynamic) return { text, extent };
  mpd.setAttribute("availabilityStartTime", "1970-01-01T00:00:00Z");
  return { text: new XMLSerializer().serializeToString(document), extent };
}

/** The end of the shortest track of the last period. */
function timelineEnd(mpd: Element): number {
  const period = [...mpd.getElementsByTagNameNS("*", "Period")].pop();
  if (!period) return NaN;
  const start = isoSeconds(period.getAttribute("start"));
  let shortest = NaN;
  for (const template of period.getElementsByTagNameNS("*", "SegmentTemplate")) {
    const timeline = template.getElementsByTagNameNS("*", "SegmentTimeline")[0];
    if (!timeline) continue;
    const timescale = Number(template.getAttribute("timescale") ?? 1) || 1;
    const offset = Number(template.getAttribute("presentationTimeOffset") ?? 0);
    let at = 0;
    for (const s of timeline.getElementsByTagNameNS("*", "S")) {
      at = Number(s.getAttribute("t") ?? at);
      at += Number(s.getAttribute("d") ?? 0) * (Number(s.getAttribute("r") ?? 0) + 1);
    }
    const end = (at - offset) / timescale + (Number.isNaN(start) ? 0 : start);
    if (!(end >= shortest)) shortest = end;
  }
  return shortest;
}

/** "PT1H2M3.4S" in seconds; NaN for anything else. */
function isoSeconds(text: string | null): number {
  const parts = /^P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?$/.exec(text ?? "");
  if (!parts) return NaN;
  const [, d, h, m, s] = parts;
  return Number(d ?? 0) * 86400 + Number(h ?? 0) * 3600 + Number(m ?? 0) * 60 + Number(s ?? 0);
}
