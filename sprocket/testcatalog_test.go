package sprocket

func bound(f float64) *float64 { return &f }

// testCatalog resembles the real one; the stages have the ports and the
// parameters that the tests need.
func testCatalog() *Catalog {
	frames, chunks := Port{"frames", Frames, 1, 1}, Port{"chunks", Chunks, 1, 1}
	optional := func(t DataType) Port { return Port{string(t), t, 0, 1} }
	two := Port{"frames", Frames, 2, 2}
	stages := []StageInfo{
		{Name: "decode", Doc: "Makes frames of chunks.", Inputs: []Port{chunks}, Outputs: []Port{frames}},
		{
			Name: "filter", Inputs: []Port{frames}, Outputs: []Port{frames}, Fusable: true,
			Params: []Param{{Name: "vf", Kind: KindString, Required: true, Doc: "An FFmpeg filter chain."}},
		},
		{
			Name: "scale", Inputs: []Port{frames}, Outputs: []Port{frames}, Fusable: true,
			Params: []Param{
				{Name: "width", Kind: KindInt, Default: "-2", Min: bound(-2), Max: bound(16384)},
				{Name: "height", Kind: KindInt, Default: "-2", Min: bound(-2)},
			},
			Check: func(p Params) (string, string) {
				if p.Int("height") == 0 {
					return "height", "must not be 0"
				}
				if p.Int("width") < 0 && p.Int("height") < 0 {
					return "", "needs a width or a height"
				}
				return "", ""
			},
		},
		{Name: "blend", Inputs: []Port{two}, Outputs: []Port{frames}, Delivery: "pair", Params: []Param{
			{Name: "opacity", Kind: KindFloat, Default: "0.5", Min: bound(0), Max: bound(1)},
		}},
		{Name: "overlay", Inputs: []Port{two}, Outputs: []Port{frames}, Delivery: "pair"},
		{Name: "mosaic", Inputs: []Port{{"frames", Frames, 1, -1}}, Outputs: []Port{frames}, Delivery: "pair"},
		{Name: "encode", Doc: "Makes chunks of frames.", Inputs: []Port{frames}, Outputs: []Port{chunks}, Delivery: "default", Params: []Param{
			{Name: "codec", Kind: KindString, Default: `"h264"`},
			{Name: "preset", Kind: KindEnum, Default: `"medium"`, Enum: []string{"fast", "medium", "slow"}},
			{Name: "crf", Kind: KindFloat, Min: bound(0), Max: bound(51)},
			{Name: "closed_gop", Kind: KindBool, Default: "true"},
		}},
		{Name: "thumbnails", Inputs: []Port{frames}, Outputs: []Port{{"images", Images, 1, 1}}, Params: []Param{
			{Name: "interval", Kind: KindDuration, Default: `"5s"`, Min: bound(0.1)},
		}},
		{
			Name: "exec", Inputs: []Port{optional(Chunks), optional(Frames)},
			Outputs: []Port{optional(Chunks), optional(Frames), optional(Images)},
			Params:  []Param{{Name: "command", Kind: KindStrings, Required: true}},
		},
	}
	c := &Catalog{
		Stages:     make(map[string]StageInfo, len(stages)),
		Deliveries: []string{"default", "pair", "anypair", "frames", "scene", "split", "all"},
		EdgeOptions: []Param{
			{Name: "frames.format", Kind: KindEnum, Enum: []string{"raw", "png"}},
			{Name: "keep", Kind: KindBool},
		},
	}
	for _, info := range stages {
		c.Stages[info.Name] = info
	}
	return c
}
