// HLS by hls.js.

import Hls from "hls.js";
import { type Attach, loadAdvice } from "./engine";
import { attach as attachNative } from "./native";

export const attach: Attach = async (video, url, listener) => {
  if (!Hls.isSupported()) return attachNative(video, url, listener);
  const hls = new Hls({
    enableWorker: false,
    // The start, also of a list that still grows; and no hurry to its end.
    startPosition: 0,
    liveMaxLatencyDuration: undefined,
    maxLiveSyncPlaybackRate: 1,
    liveDurationInfinity: false,
    maxBufferLength: 30,
  });
  let edge = NaN;
  let live = true;
  let mediaErrors = 0;
  hls.on(Hls.Events.LEVEL_UPDATED, (_, data) => {
    edge = data.details.edge;
    live = data.details.live;
  });
  hls.on(Hls.Events.FRAG_LOADED, (_, data) => {
    if (data.frag.sn !== "initSegment") listener.segment();
  });
  hls.on(Hls.Events.ERROR, (_, data) => {
    if (!data.fatal) return;
    if (data.type === Hls.ErrorTypes.MEDIA_ERROR && mediaErrors++ === 0) {
      hls.recoverMediaError();
      return;
    }
    const status = data.response?.code;
    const file = data.frag?.url ?? data.url ?? url;
    if (data.type === Hls.ErrorTypes.NETWORK_ERROR) {
      listener.error(`Could not load ${file}${status ? ` (HTTP ${status})` : ""}.`, loadAdvice(status || undefined));
    } else {
      listener.error(`HLS playback failed: ${data.details}.`, "Choose another format, or reload the page.");
    }
  });
  hls.loadSource(url);
  hls.attachMedia(video);
  return {
    published: () => edge,
    growing: () => live,
    destroy: () => hls.destroy(),
  };
};
