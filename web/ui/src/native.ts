// The browser's own player, for MP4, and for HLS where the browser has it.

import { type Attach, loadAdvice } from "./engine";

export const attach: Attach = async (video, url, listener) => {
  const failed = () => {
    const error = video.error;
    if (!error) return;
    const network = error.code === MediaError.MEDIA_ERR_NETWORK;
    listener.error(
      `The video does not play: ${error.message || `media error ${error.code}`}.`,
      network ? loadAdvice(undefined) : "Choose another format, or download the file and open it in a player such as mpv or VLC.",
    );
  };
  video.addEventListener("error", failed);
  video.src = url;
  return {
    published: () => video.duration,
    growing: () => video.duration === Infinity,
    destroy: () => {
      video.removeEventListener("error", failed);
      video.removeAttribute("src");
      video.load();
    },
  };
};
