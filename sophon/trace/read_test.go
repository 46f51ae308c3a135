package trace

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volley-run/volley/internal/testenv"
)

const (
	goodInvocations = `HashOwner,HashApp,HashFunction,Trigger,480,481,482
o1,a1,f1,http,1,0,2
o1,a1,f2,timer,0,5,0
o2,a2,f3,queue,3,3,3
`
	goodDurations = `HashOwner,HashApp,HashFunction,Average,percentile_Average_0,percentile_Average_50,percentile_Average_100
o2,a2,f3,30,10,30,50
o1,a1,f1,3,1,3,5
o1,a1,f2,20,20,20,20
`
	goodMemory = `HashFunction,HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1,AverageAllocatedMb_pct100
f2,o1,a1,9,64.5,60,70.5
f3,o2,a2,9,200,100,300
f1,o1,a1,9,10,10,10
`
	appMemory = `HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1,AverageAllocatedMb_pct100
o2,a2,9,200,100,300
o1,a1,9,100,80,120
`
)

// write makes a directory with those files.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		data := []byte(text)
		if strings.HasSuffix(name, ".gz") {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			data = b.Bytes()
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRowsAreJoinedByFunctionAndNotByOrder(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"plain":             {"invocations.csv": goodInvocations, "durations.csv": goodDurations, "memory.csv": goodMemory},
		"compressed":        {"invocations.csv.gz": goodInvocations, "durations.csv.gz": goodDurations, "memory.csv.gz": goodMemory},
		"byte order mark":   {"invocations.csv": "\ufeff" + goodInvocations, "durations.csv": goodDurations, "memory.csv": goodMemory},
		"names of full set": {"invocations_per_function_md.anon.d01.csv": goodInvocations, "function_durations_percentiles.anon.d01.csv": goodDurations, "app_memory_percentiles.anon.d01.csv": goodMemory},
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := Open(write(t, files), OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if tr.FirstMinute != 480 || tr.Minutes != 3 || tr.Invocations != 17 || tr.Unjoined || tr.DurationsDrawn != 0 || tr.MemoryDrawn != 0 {
				t.Errorf("trace = %+v", tr)
			}
			type row struct {
				id, trigger     string
				n               int64
				median, maximum float64
			}
			want := []row{{"f1", "http", 3, 3, 10}, {"f2", "timer", 5, 20, 70.5}, {"f3", "queue", 9, 30, 300}}
			var got []row
			for _, f := range tr.Functions {
				got = append(got, row{f.ID, f.Trigger, f.Invocations, f.DurationMS.At(50), f.MemoryMB.Max()})
			}
			if d := cmp.Diff(want, got, cmp.AllowUnexported(row{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMemoryOfAnAppIsSharedByItsFunctions(t *testing.T) {
	tr, err := Open(write(t, map[string]string{"invocations.csv": goodInvocations, "durations.csv": goodDurations, "memory.csv": appMemory}), OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{60, 60, 300} {
		if got := tr.Functions[i].MemoryMB.Max(); got != want {
			t.Errorf("function %d has at most %g MB, want %g", i, got, want)
		}
	}
}

func TestWhatIsMissingIsDrawnWithTheSeedAndReported(t *testing.T) {
	files := map[string]string{
		"invocations.csv": goodInvocations,
		"durations.csv":   strings.Join(strings.SplitAfter(goodDurations, "\n")[:3], ""), // f2 is missing
		"memory.csv":      goodMemory,
	}
	dir := write(t, files)
	seen := map[float64]bool{}
	for seed := range uint64(20) {
		tr, err := Open(dir, OpenOptions{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		if tr.DurationsDrawn != 1 || tr.MemoryDrawn != 0 {
			t.Fatalf("drawn: %d durations, %d memory; want 1 and 0", tr.DurationsDrawn, tr.MemoryDrawn)
		}
		again, err := Open(dir, OpenOptions{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		median := tr.Functions[1].DurationMS.At(50)
		if again.Functions[1].DurationMS.At(50) != median {
			t.Errorf("seed %d draws differently the second time", seed)
		}
		seen[median] = true
	}
	if len(seen) != 2 || !seen[3] || !seen[30] {
		t.Errorf("twenty seeds drew %v, want the two rows that there are", seen)
	}
}

func TestPlaceholderIdentifiersAreNotJoined(t *testing.T) {
	same := func(header string, rows ...string) string { return header + "\n" + strings.Join(rows, "\n") + "\n" }
	dir := write(t, map[string]string{
		"invocations.csv": same("HashFunction,HashOwner,HashApp,minute_1,minute_2", "x1,x1,x1,1,2", "x2,x2,x2,3,4"),
		"durations.csv":   same("HashOwner,HashApp,HashFunction,percentile_Average_0,percentile_Average_100", "x1,x1,x1,1,1", "x2,x2,x2,2,2"),
		"memory.csv":      same("HashOwner,HashApp,AverageAllocatedMb_pct1,AverageAllocatedMb_pct100", "x1,x1,10,10", "x2,x2,20,20"),
	})
	tr, err := Open(dir, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !tr.Unjoined || tr.DurationsDrawn != 2 || tr.MemoryDrawn != 2 {
		t.Errorf("unjoined %v, %d durations and %d memory drawn; want true, 2, 2", tr.Unjoined, tr.DurationsDrawn, tr.MemoryDrawn)
	}
	marginals := write(t, map[string]string{
		"durations.csv": same("HashOwner,HashApp,HashFunction,percentile_Average_0,percentile_Average_100", "m,m,m,77,77"),
		"memory.csv":    same("HashOwner,HashApp,AverageAllocatedMb_pct1,AverageAllocatedMb_pct100", "m,m,88,88"),
	})
	if tr, err = Open(dir, OpenOptions{Marginals: marginals}); err != nil {
		t.Fatal(err)
	}
	if f := tr.Functions[1]; f.DurationMS.Mean() != 77 || f.MemoryMB.Mean() != 88 {
		t.Errorf("durations and memory are %g and %g, want those of the marginals", f.DurationMS.Mean(), f.MemoryMB.Mean())
	}
}

func TestBadRowsAreNamedByLineAndColumn(t *testing.T) {
	const header = "HashOwner,HashApp,HashFunction,Trigger,480,481\n"
	const distHeader = "HashOwner,HashApp,HashFunction,percentile_Average_0,percentile_Average_50\n"
	for _, tc := range []struct {
		name, file, text string
		line, column     int
		field, message   string
	}{
		{"empty file", "invocations", "", 0, 0, "", "is empty"},
		{"header only", "invocations", header, 0, 0, "", "has no functions"},
		{"short row", "invocations", header + "o,a,f,http,1,2\no,a,g,http,1\n", 3, 12, "", "5 fields, but there are 6 columns"},
		{"long row", "invocations", header + "o,a,f,http,1,2,3\n", 2, 16, "", "7 fields"},
		{"count is no number", "invocations", header + "o,a,f,http,1,two\n", 2, 14, "481", `"two" is not a count`},
		{"negative count", "invocations", header + "o,a,f,http,-1,2\n", 2, 12, "480", `"-1" is not a count`},
		{"fractional count", "invocations", header + "o,a,f,http,1.5,2\n", 2, 12, "480", `"1.5" is not a count`},
		{"huge count", "invocations", header + "o,a,f,http,99999999999,2\n", 2, 12, "480", "is not a count"},
		{"no function", "invocations", header + "o,a,,http,1,2\n", 2, 5, "HashFunction", "is empty"},
		{"function twice", "invocations", header + "o,a,f,http,1,2\no,a,f,http,1,2\n", 3, 5, "HashFunction", "the same as in line 2"},
		{"missing column", "invocations", "HashOwner,HashApp,480\no,a,1\n", 1, 0, "HashFunction", "is missing"},
		{"no minutes", "invocations", "HashOwner,HashApp,HashFunction\no,a,f\n", 1, 0, "", "no column of minutes"},
		{"gap in minutes", "invocations", "HashOwner,HashApp,HashFunction,1,2,4\no,a,f,1,1,1\n", 1, 36, "4", "follows minute 2"},
		{"unknown column", "invocations", "HashOwner,HashApp,HashFunction,sum,1\no,a,f,1,1\n", 1, 32, "sum", "not the number of a minute"},
		{"column twice", "invocations", "HashOwner,HashApp,HashFunction,1,1\no,a,f,1,1\n", 1, 34, "1", "there twice"},
		{"open quote", "invocations", header + "o,a,\"f,http,1,2\n", 2, 0, "", "quote"},
		{"duration is no number", "durations", distHeader + "o,a,f,1,x\n", 2, 9, "percentile_Average_50", `"x" is not a number`},
		{"duration is not finite", "durations", distHeader + "o,a,f,1,Inf\n", 2, 9, "percentile_Average_50", "not a number"},
		{"duration is NaN", "durations", distHeader + "o,a,f,NaN,1\n", 2, 7, "percentile_Average_0", "not a number"},
		{"percentiles descend", "durations", distHeader + "o,a,f,2,1\n", 2, 9, "percentile_Average_50", "less than the percentile before"},
		{"duration row twice", "durations", distHeader + "o,a,f,1,1\no,a,f,1,1\n", 3, 5, "HashFunction", "the same as in line 2"},
		{"no percentiles", "durations", "HashOwner,HashApp,HashFunction,Average\no,a,f,2\n", 1, 0, "", "fewer than two columns"},
		{"percentile out of range", "durations", "HashFunction,percentile_Average_0,percentile_Average_101\nf,2,2\n", 1, 35, "percentile_Average_101", "from 0 to 100"},
		{"durations of apps", "durations", "HashOwner,HashApp,percentile_Average_0,percentile_Average_50\no,a,2,2\n", 1, 0, "HashFunction", "is missing"},
		{"negative memory", "memory", "HashOwner,HashApp,AverageAllocatedMb_pct1,AverageAllocatedMb_pct99\no,a,-2,2\n", 2, 5, "AverageAllocatedMb_pct1", "not a number of at least 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"invocations.csv": goodInvocations, "durations.csv": goodDurations, "memory.csv": goodMemory}
			files[tc.file+".csv"] = tc.text
			dir := write(t, files)
			_, err := Open(dir, OpenOptions{})
			var bad *ParseError
			if !errors.As(err, &bad) {
				t.Fatalf("error %v, want a ParseError", err)
			}
			if bad.File != filepath.Join(dir, tc.file+".csv") || bad.Line != tc.line || (tc.column > 0 && bad.Column != tc.column) || bad.Field != tc.field {
				t.Errorf("%s:%d:%d field %q; want line %d, column %d, field %q", bad.File, bad.Line, bad.Column, bad.Field, tc.line, tc.column, tc.field)
			}
			if !strings.Contains(err.Error(), tc.message) {
				t.Errorf("message %q lacks %q", err, tc.message)
			}
		})
	}
}

func TestDamagedCompressionIsABadFile(t *testing.T) {
	dir := write(t, map[string]string{"invocations.csv.gz": goodInvocations, "durations.csv": goodDurations, "memory.csv": goodMemory})
	path := filepath.Join(dir, "invocations.csv.gz")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"cut":      whole[:len(whole)/2],
		"flipped":  append(bytes.Clone(whole[:len(whole)-6]), 0, 0, 0, 0, 0, 0),
		"overwrit": append(bytes.Clone(whole[:12]), bytes.Repeat([]byte{0xff}, 40)...),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var bad *ParseError
		if _, err := Open(dir, OpenOptions{}); !errors.As(err, &bad) {
			t.Errorf("%s: error %v, want a ParseError", name, err)
		}
	}
}

func TestFilesThatAreNotThereOrNotClearAreNamed(t *testing.T) {
	for _, tc := range []struct {
		name    string
		files   map[string]string
		opts    OpenOptions
		missing bool
		message string
	}{
		{"no durations", map[string]string{"invocations.csv": goodInvocations, "memory.csv": goodMemory}, OpenOptions{}, true, "*durations*.csv"},
		{"no files", nil, OpenOptions{}, true, "*invocations*.csv"},
		{"two days", map[string]string{"invocations.anon.d01.csv": goodInvocations, "invocations.anon.d02.csv": goodInvocations}, OpenOptions{}, false, "name the day"},
		{"no such day", map[string]string{"invocations.anon.d01.csv": goodInvocations}, OpenOptions{Day: 3}, true, "*invocations*.csv"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Open(write(t, tc.files), tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.message) || errors.Is(err, fs.ErrNotExist) != tc.missing {
				t.Errorf("error %v", err)
			}
		})
	}
	files := map[string]string{}
	for _, day := range []string{".d01.", ".d02."} {
		files["invocations"+day+"csv"], files["durations"+day+"csv"], files["memory"+day+"csv"] = goodInvocations, goodDurations, goodMemory
	}
	if _, err := Open(write(t, files), OpenOptions{Day: 2}); err != nil {
		t.Errorf("the second of two days: %v", err)
	}
}

func TestTheSampleTracesAreRead(t *testing.T) {
	tr, err := Open(testenv.Data(t, "traces", "azure2019_500x480min"), OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Functions) != 500 || tr.Minutes != 480 || tr.FirstMinute != 480 || tr.Invocations != 3037902 || tr.Unjoined || tr.DurationsDrawn+tr.MemoryDrawn > 0 {
		t.Errorf("%d functions, %d minutes from %d, %d invocations, unjoined %v, %d and %d drawn",
			len(tr.Functions), tr.Minutes, tr.FirstMinute, tr.Invocations, tr.Unjoined, tr.DurationsDrawn, tr.MemoryDrawn)
	}
	if share := tr.TopShare(1); share < 0.63 || share > 0.64 {
		t.Errorf("one function is %.3f of the invocations, want 0.63", share)
	}
	tr, err = Open(testenv.Data(t, "traces", "azure2019_1350x1440min_a"), OpenOptions{Marginals: testenv.Data(t, "traces", "azure2019_10000_dist")})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Functions) != 1350 || tr.Minutes != 1440 || tr.FirstMinute != 1 || tr.Invocations != 927272 || !tr.Unjoined || tr.DurationsDrawn != 1350 || tr.MemoryDrawn != 1350 {
		t.Errorf("%d functions, %d minutes from %d, %d invocations, unjoined %v, %d and %d drawn",
			len(tr.Functions), tr.Minutes, tr.FirstMinute, tr.Invocations, tr.Unjoined, tr.DurationsDrawn, tr.MemoryDrawn)
	}
}

func FuzzReadInvocations(f *testing.F) {
	f.Add([]byte(goodInvocations))
	f.Add([]byte("HashFunction,HashOwner,HashApp,minute_1\nx,x,x,7\n"))
	f.Add([]byte("HashOwner,HashApp,HashFunction,1\n\"o\n\",a,f,1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := readInvocations("f.csv", bytes.NewReader(data))
		if err != nil {
			checkParseError(t, err)
			return
		}
		total := int64(0)
		for _, fn := range tr.Functions {
			if fn.ID == "" || len(fn.PerMinute) != tr.Minutes {
				t.Fatalf("function %q has %d of %d minutes", fn.ID, len(fn.PerMinute), tr.Minutes)
			}
			total += fn.Invocations
		}
		if total != tr.Invocations || len(tr.Functions) == 0 || tr.Minutes == 0 {
			t.Fatalf("%d functions, %d minutes, %d invocations, sum %d", len(tr.Functions), tr.Minutes, tr.Invocations, total)
		}
	})
}

func FuzzReadDistributions(f *testing.F) {
	f.Add([]byte(goodMemory))
	f.Add([]byte(appMemory))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := readDistributions("f.csv", memoryPrefix, bytes.NewReader(data))
		if err != nil {
			checkParseError(t, err)
			return
		}
		for _, row := range d.rows {
			last := 0.0
			for p := 0.0; p <= 100; p += 12.5 {
				v := row.At(p)
				if v < last {
					t.Fatalf("percentile %g is %g, less than %g before it", p, v, last)
				}
				last = v
			}
			if mean := row.Mean(); mean < row.At(0)*0.999999 || mean > row.Max()*1.000001 {
				t.Fatalf("mean %g is not between %g and %g", mean, row.At(0), row.Max())
			}
		}
	})
}

func checkParseError(t *testing.T, err error) {
	t.Helper()
	var bad *ParseError
	if !errors.As(err, &bad) || bad.File != "f.csv" || bad.Err == nil {
		t.Fatalf("error %#v is not a ParseError of the file", err)
	}
}
