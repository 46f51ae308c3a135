package stage

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/volley-run/volley/sprocket"
)

// graph assembles an FFmpeg filter graph, one chain a line of ports.
type graph struct {
	chains []string
	labels int
}

// label returns a new link label, "[l3]".
func (g *graph) label() string {
	g.labels++
	return fmt.Sprintf("[l%d]", g.labels)
}

// chain adds inputs -> filters -> one new label, which it returns.
func (g *graph) chain(filters string, inputs ...string) string {
	out := g.label()
	g.chains = append(g.chains, strings.Join(inputs, "")+filters+out)
	return out
}

func (g *graph) String() string { return strings.Join(g.chains, ";") }

// clockFilter puts an input's frames on the output's timeline, as Clock.Tick
// does.
func clockFilter(c sprocket.Clock, tb sprocket.Rational) string {
	if !c.Constant {
		return fmt.Sprintf("setpts=PTS-(%d),settb=%s", c.OriginPTS, tb)
	}
	offset := c.TimeBase.Rescale(c.StartPTS-c.OriginPTS, tb)
	// Ticks since the first frame -> frame number -> ticks of the grid.
	return fmt.Sprintf("setpts=PTS-(%d),settb=%s,setpts=%d+round(round(PTS*%d/%d)*%d/%d)",
		c.StartPTS, tb, offset, c.Rate.Num*tb.Num, c.Rate.Den*tb.Den, c.Rate.Den*tb.Den, c.Rate.Num*tb.Num)
}

// sourceFilter selects the frames of a chunk of an input.
func sourceFilter(port int, r sprocket.SourceRange, c sprocket.Clock, tb sprocket.Rational) string {
	trim := fmt.Sprintf("trim=start_pts=%d", r.LeadPTS)
	if !r.Last {
		trim += fmt.Sprintf(":end_pts=%d", r.EndPTS)
	}
	return fmt.Sprintf("%s,showinfo@src%d=checksum=0,%s", trim, port, clockFilter(c, tb))
}

// framesFilter selects the frames of a frames item that was read back.
func framesFilter(port int, pts []int64, px sprocket.Pixels, tb sprocket.Rational) string {
	f := fmt.Sprintf("settb=%s,trim=start_pts=%d:end_pts=%d,showinfo@src%d=checksum=0", tb, pts[0], pts[len(pts)-1]+1, port)
	var color []string
	for _, kv := range [][2]string{{"range", px.Range}, {"colorspace", px.Space}, {"color_trc", px.Transfer}, {"color_primaries", px.Primaries}} {
		if kv[1] != "" && kv[1] != "unknown" && !strings.HasPrefix(px.Format, "rgb") && !strings.HasPrefix(px.Format, "gbr") {
			color = append(color, kv[0]+"="+kv[1])
		}
	}
	if len(color) > 0 {
		f += ",setparams=" + strings.Join(color, ":")
	}
	return f
}

// stageFilter returns the filters of one stage, reading the links in. px are
// the pictures on each link where known (multi-input stages).
func (g *graph) stageFilter(u sprocket.StageUse, in []string, px []sprocket.Pixels, tb sprocket.Rational, frame int64, more bool) (string, error) {
	p := u.Params
	switch u.Stage {
	case "decode", "encode":
		return in[0], nil
	case "filter":
		return g.chain(p.String("vf"), in[0]), nil
	case "scale":
		return g.chain(fmt.Sprintf("scale=w=%d:h=%d:flags=%s", p.Int("width"), p.Int("height"), p.String("flags")), in[0]), nil
	case "blend":
		if len(in) < 2 {
			return in[0], nil
		}
		second := g.chain(fmt.Sprintf("scale=w=%d:h=%d:flags=bicubic,setsar=%s,format=%s", px[0].Width, px[0].Height, sar(px[0]), px[0].Format), in[1])
		return g.chain(fmt.Sprintf("blend=all_mode=%s:all_opacity=%s:eof_action=%s", p.String("mode"), number(p.Float("opacity")), afterEnd(p, more)), in[0], second), nil
	case "overlay":
		if len(in) < 2 {
			return in[0], nil
		}
		width := max(2, int(float64(px[0].Width)*p.Float("size"))/2*2)
		second := g.chain(fmt.Sprintf("scale=w=%d:h='2*trunc(%d*ih/(iw*2*%s))':flags=bicubic,setsar=%s", width, width, aspectRatio(px[1], px[0]), sar(px[0])), in[1])
		return g.chain(fmt.Sprintf("overlay=x='%s':y='%s':eof_action=%s", p.String("x"), p.String("y"), afterEnd(p, more)), in[0], second), nil
	case "thumbnails":
		// The first frame at or after every multiple of the interval; for the
		// first frame of a chunk, the one before it is a frame's time earlier.
		every := number(p.Duration("interval").Seconds())
		before := number(tb.Seconds(frame))
		pick := fmt.Sprintf("select='if(isnan(prev_pts),gt(floor(t/%[1]s+1e-9),floor((t-%[2]s)/%[1]s+1e-9)),gt(floor(t/%[1]s+1e-9),floor(prev_t/%[1]s+1e-9)))'", every, before)
		return g.chain(fmt.Sprintf("%s,scale=w=%d:h=-2:flags=bicubic", pick, p.Int("width")), in[0]), nil
	}
	return "", fmt.Errorf("stage %q of node %s cannot run inside FFmpeg", u.Stage, u.Node)
}

// sar returns the shape of px's samples for setsar.
func sar(px sprocket.Pixels) string {
	if px.SampleAspect.IsZero() {
		return "1"
	}
	return px.SampleAspect.String()
}

// aspectRatio returns how much wider inset samples get when they become frame
// samples, as an expression: the inset keeps its shape on the screen.
func aspectRatio(inset, frame sprocket.Pixels) string {
	value := func(r sprocket.Rational) float64 {
		if r.IsZero() {
			return 1
		}
		return r.Float()
	}
	return number(value(inset.SampleAspect) / value(frame.SampleAspect))
}

// afterEnd says what becomes of the first stream's frames after the second
// stream's last one. A chunk's last frame stays on show to its end if the
// second stream goes on after it.
func afterEnd(p sprocket.Params, more bool) string {
	if p.String("end") == "first" && !more {
		return "pass"
	}
	return "repeat"
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
