// Package stage holds the built-in stages of Sprocket and runs a worker's tasks
// with them.
//
// A task runs in three steps that the coordinator commands one by one: Fetch
// gathers the inputs, Process does the work, Emit stores the result (thesis
// 2.2.4). Stages that are FFmpeg sources, filters or sinks share one FFmpeg
// process when the plan fused them; the stage "exec" runs any program.
package stage

import (
	"fmt"
	"strings"

	"github.com/volley-run/volley/sprocket"
)

// Frame hand-over formats, the values of the stream option "frames.format".
const (
	FormatRaw  = "raw"  // uncompressed: fastest on a local store
	FormatFFV1 = "ffv1" // lossless, about a tenth to a third of the size
	FormatPNG  = "png"  // as in the thesis; goes through RGB, so not bit-exact
)

// Catalog returns the built-in stages, with the given delivery functions.
func Catalog(deliveries []string) *sprocket.Catalog {
	c := &sprocket.Catalog{
		Stages:     map[string]sprocket.StageInfo{},
		Deliveries: deliveries,
		EdgeOptions: []sprocket.Param{{
			Name: "frames.format", Kind: sprocket.KindEnum, Enum: []string{FormatRaw, FormatFFV1, FormatPNG},
			Doc: "how frames are handed over on this stream; naming one keeps the two stages in separate workers",
		}},
	}
	for _, info := range builtin() {
		c.Stages[info.Name] = info
	}
	return c
}

func one(name string, t sprocket.DataType) []sprocket.Port {
	return []sprocket.Port{{Name: name, Type: t, Min: 1, Max: 1}}
}

func maybe(name string, t sprocket.DataType) sprocket.Port {
	return sprocket.Port{Name: name, Type: t, Min: 0, Max: 1}
}

func bound(v float64) *float64 { return &v }

// framesPerTask is the N of the delivery function "frames".
func framesPerTask() sprocket.Param {
	return sprocket.Param{
		Name: "frames_per_task", Kind: sprocket.KindInt, Default: "24", Min: bound(1), Max: bound(100_000),
		Doc: "how many frames a task gets with the delivery function \"frames\"",
	}
}

func endRule() sprocket.Param {
	return sprocket.Param{
		Name: "end", Kind: sprocket.KindEnum, Enum: []string{"shortest", "first"}, Default: `"shortest"`,
		Doc: "when the output ends: with the shortest input, or with the first one, which is then shown alone for the rest",
	}
}

func builtin() []sprocket.StageInfo {
	frames, chunks := sprocket.Frames, sprocket.Chunks
	pairOfFrames := []sprocket.Port{{Name: "frames", Type: frames, Min: 2, Max: 2}}
	return []sprocket.StageInfo{
		{
			Name: "decode", Doc: "Decodes chunks of compressed video into frames.", Fusable: true,
			Inputs: one("chunks", chunks), Outputs: one("frames", frames), Delivery: "default",
			Params: []sprocket.Param{{
				Name: "errors", Kind: sprocket.KindEnum, Enum: []string{"fail", "conceal"}, Default: `"fail"`,
				Doc: "what to do with damaged video: stop with an error that names the place, or let the decoder conceal it",
			}},
		},
		{
			Name: "filter", Doc: "Applies an FFmpeg filter graph to every frame.", Fusable: true,
			Inputs: one("frames", frames), Outputs: one("frames", frames), Delivery: "default",
			Params: []sprocket.Param{
				{Name: "vf", Kind: sprocket.KindString, Required: true, Doc: "the filter graph, as for ffmpeg -vf; it must keep the frames' times"},
				framesPerTask(),
			},
			Check: checkFilter,
		},
		{
			Name: "scale", Doc: "Scales frames to another size.", Fusable: true,
			Inputs: one("frames", frames), Outputs: one("frames", frames), Delivery: "default",
			Params: []sprocket.Param{
				{Name: "width", Kind: sprocket.KindInt, Default: "-2", Min: bound(-2), Max: bound(16384), Doc: "in pixels; -2 keeps the shape"},
				{Name: "height", Kind: sprocket.KindInt, Default: "-2", Min: bound(-2), Max: bound(16384), Doc: "in pixels; -2 keeps the shape"},
				{Name: "flags", Kind: sprocket.KindEnum, Enum: []string{"fast_bilinear", "bilinear", "bicubic", "area", "lanczos"}, Default: `"bicubic"`, Doc: "the scaling algorithm"},
				framesPerTask(),
			},
			Check: func(p sprocket.Params) (string, string) {
				for _, name := range []string{"width", "height"} {
					if v := p.Int(name); v == 0 || v == -1 {
						return name, "must be a number of pixels, or -2 to keep the shape"
					}
				}
				if p.Int("width") < 0 && p.Int("height") < 0 {
					return "", "needs a width or a height"
				}
				return "", ""
			},
		},
		{
			Name: "blend", Doc: "Blends the frames of two streams; the second is scaled to the first's size and follows its clock.", Fusable: true,
			Inputs: pairOfFrames, Outputs: one("frames", frames), Delivery: "pair",
			Params: []sprocket.Param{
				{Name: "mode", Kind: sprocket.KindEnum, Enum: blendModes(), Default: `"normal"`, Doc: "the blend mode"},
				{Name: "opacity", Kind: sprocket.KindFloat, Default: "0.5", Min: bound(0), Max: bound(1), Doc: "the weight of the first stream"},
				endRule(), framesPerTask(),
			},
		},
		{
			Name: "overlay", Doc: "Puts the second stream's frames, made smaller, onto the first's: picture in picture.", Fusable: true,
			Inputs: pairOfFrames, Outputs: one("frames", frames), Delivery: "pair",
			Params: []sprocket.Param{
				{Name: "size", Kind: sprocket.KindFloat, Default: "0.33", Min: bound(0.01), Max: bound(1), Doc: "width of the inset as a part of the whole width"},
				{Name: "x", Kind: sprocket.KindString, Default: `"W-w-16"`, Doc: "left edge: an FFmpeg expression of W, H (whole) and w, h (inset)"},
				{Name: "y", Kind: sprocket.KindString, Default: `"H-h-16"`, Doc: "top edge"},
				endRule(), framesPerTask(),
			},
		},
		{
			Name: "encode", Doc: "Encodes frames into chunks of compressed video.", Fusable: true,
			Inputs: one("frames", frames), Outputs: one("chunks", chunks), Delivery: "default",
			Params: []sprocket.Param{
				{Name: "codec", Kind: sprocket.KindEnum, Enum: []string{"libx264", "libx265"}, Default: `"libx264"`, Doc: "the encoder"},
				{Name: "preset", Kind: sprocket.KindEnum, Enum: []string{"ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"}, Default: `"medium"`, Doc: "speed against size"},
				{Name: "crf", Kind: sprocket.KindFloat, Default: "23", Min: bound(0), Max: bound(51), Doc: "quality: lower is better and larger"},
				{Name: "pix_fmt", Kind: sprocket.KindEnum, Enum: []string{"yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gray"}, Default: `"yuv420p"`, Doc: "pixel format; players in browsers want yuv420p"},
				{Name: "tune", Kind: sprocket.KindString, Doc: "the encoder's tuning, such as \"film\" or \"animation\""},
				{Name: "params", Kind: sprocket.KindString, Doc: "further encoder options, as for -x264-params or -x265-params"},
				{Name: "threads", Kind: sprocket.KindInt, Default: "1", Min: bound(1), Max: bound(64), Doc: "encoder threads in each worker; the workers already run side by side, and the output depends on it"},
				framesPerTask(),
			},
		},
		{
			Name: "thumbnails", Doc: "Takes a still picture at regular times.", Fusable: true,
			Inputs: one("frames", frames), Outputs: one("images", sprocket.Images), Delivery: "default",
			Params: []sprocket.Param{
				{Name: "interval", Kind: sprocket.KindDuration, Default: "5", Min: bound(0.01), Max: bound(86400), Doc: "time between two pictures"},
				{Name: "width", Kind: sprocket.KindInt, Default: "320", Min: bound(2), Max: bound(16384), Doc: "width in pixels; the height keeps the shape"},
				{Name: "format", Kind: sprocket.KindEnum, Enum: []string{"jpg", "png"}, Default: `"jpg"`, Doc: "file format"},
				framesPerTask(),
			},
		},
		{
			Name: "exec", Doc: "Runs a command of yours on every task, with an input and an output directory: a stage in any language.",
			Inputs:  []sprocket.Port{maybe("frames", frames), maybe("chunks", chunks)},
			Outputs: []sprocket.Port{maybe("frames", frames), maybe("chunks", chunks), maybe("images", sprocket.Images)}, Delivery: "default",
			Params: []sprocket.Param{
				{Name: "command", Kind: sprocket.KindStrings, Required: true, Doc: "program and arguments; {in}, {out} and {task} stand for the directories and the description's path"},
				{Name: "format", Kind: sprocket.KindEnum, Enum: []string{"png", "ppm"}, Default: `"png"`, Doc: "file format of frames given to the command"},
				{Name: "timeout", Kind: sprocket.KindDuration, Default: "600", Min: bound(0.1), Max: bound(86400), Doc: "how long one task may take"},
				framesPerTask(),
			},
		},
	}
}

// checkFilter refuses graphs that cannot be one link of a chain.
func checkFilter(p sprocket.Params) (string, string) {
	vf := p.String("vf")
	if strings.TrimSpace(vf) == "" {
		return "vf", "is empty; \"null\" passes frames on as they are"
	}
	if strings.Count(vf, "'")%2 != 0 {
		return "vf", fmt.Sprintf("has an unclosed quote: %s", vf)
	}
	return "", ""
}

func blendModes() []string {
	return []string{"normal", "addition", "and", "average", "burn", "darken", "difference", "divide", "dodge", "exclusion", "extremity", "freeze", "glow", "hardlight", "hardmix", "heat", "lighten", "linearlight", "multiply", "negation", "or", "overlay", "phoenix", "pinlight", "reflect", "screen", "softlight", "subtract", "vividlight", "xor"}
}
