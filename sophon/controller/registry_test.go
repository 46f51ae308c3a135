package controller

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/volley-run/volley/function"
)

func (w *world) packages(c *process) []string {
	w.t.Helper()
	keys, err := c.registry.objects.Keys(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

func TestAFunctionIsCreatedReadChangedAndDeleted(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		ctx := context.Background()
		made := w.create(c, "f", func(f *function.Function) { f.Environment = map[string]string{"AA": "1"} })
		if made.Revision == "" || made.Code.SHA256 == "" || made.Created.IsZero() || made.TmpMB != function.DefaultTmpMB || made.Async != DefaultAsync {
			t.Errorf("%+v", made)
		}
		_, err := c.CreateFunction(ctx, function.Function{Name: "f", Runtime: "provided"}, Package{Zip: zipOf("bootstrap", "x")})
		wantCode(t, err, function.Conflict)

		changed, err := c.UpdateConfiguration(ctx, "f", made.Revision, func(f *function.Function) { f.MemoryMB = 256 })
		if err != nil || changed.MemoryMB != 256 || changed.Revision == made.Revision || changed.Environment["AA"] != "1" {
			t.Errorf("%+v, %v", changed, err)
		}
		_, err = c.UpdateConfiguration(ctx, "f", made.Revision, func(*function.Function) {})
		wantCode(t, err, function.PreconditionFailed)
		_, err = c.UpdateConfiguration(ctx, "f", "", func(f *function.Function) { f.MemoryMB = 1 })
		if e := wantCode(t, err, function.InvalidParameter); e.Field != "memoryMB" {
			t.Errorf("field %s", e.Field)
		}
		got, err := c.GetFunction(ctx, "f")
		if err != nil || got.Revision != changed.Revision {
			t.Errorf("%+v, %v", got, err)
		}
		code, err := c.Code(ctx, "f")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(code)
		if err != nil || int64(len(data)) != got.Code.SizeBytes || code.Close() != nil {
			t.Errorf("%d bytes of code, %v", len(data), err)
		}
		if err := c.DeleteFunction(ctx, "f"); err != nil {
			t.Fatal(err)
		}
		_, err = c.GetFunction(ctx, "f")
		wantCode(t, err, function.NotFound)
		wantCode(t, c.DeleteFunction(ctx, "f"), function.NotFound)
		w.create(c, "f") // again
		synctest.Wait()
		if _, err := c.GetFunction(ctx, "f"); err != nil {
			t.Error(err)
		}
	})
}

func TestFunctionsAreListedInPages(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		for _, name := range []string{"d", "b", "a", "c", "e"} {
			w.create(c, name)
		}
		var pages []string
		marker := ""
		for {
			list, next, err := c.ListFunctions(context.Background(), marker, 2)
			if err != nil {
				t.Fatal(err)
			}
			page := ""
			for _, f := range list {
				page += f.Name
			}
			pages = append(pages, page)
			if marker = next; next == "" {
				break
			}
		}
		if got := strings.Join(pages, " "); got != "ab cd e" {
			t.Errorf("pages %s", got)
		}
	})
}

func TestAPackageIsKeptForAsLongAsAFunctionNeedsIt(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		ctx := context.Background()
		for _, name := range []string{"f", "g"} {
			if _, err := c.CreateFunction(ctx, function.Function{Name: name, Runtime: "provided"}, Package{Zip: zipOf("bootstrap", "same")}); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(w.packages(c)); n != 1 {
			t.Fatalf("%d packages", n)
		}
		if _, err := c.UpdateCode(ctx, "f", "", Package{Zip: zipOf("bootstrap", "other")}); err != nil {
			t.Fatal(err)
		}
		if n := len(w.packages(c)); n != 2 {
			t.Fatalf("%d packages", n)
		}
		for want, name := range map[int]string{1: "g"} {
			if err := c.DeleteFunction(ctx, name); err != nil {
				t.Fatal(err)
			}
			if n := len(w.packages(c)); n != want {
				t.Errorf("%d packages without %s", n, name)
			}
		}
		if err := c.DeleteFunction(ctx, "f"); err != nil {
			t.Fatal(err)
		}
		if n := len(w.packages(c)); n != 0 {
			t.Errorf("%d packages are left", n)
		}
	})
}

func TestBadPackagesAreRefusedAndNothingIsLeft(t *testing.T) {
	for _, tt := range []struct {
		name string
		pkg  Package
		want function.ErrorCode
		says string
	}{
		{"no code", Package{}, function.InvalidParameter, "needs code"},
		{"not a zip file", Package{Zip: strings.NewReader("hello")}, function.InvalidCode, "no zip file"},
		{"an empty zip file", Package{Zip: zipOf()}, function.InvalidCode, "empty"},
		{"a name outside", Package{Zip: zipOf("../bootstrap", "x")}, function.InvalidCode, "outside"},
		{"an absolute name", Package{Zip: zipOf("/etc/passwd", "x")}, function.InvalidCode, "outside"},
		{"too large", Package{Zip: bytes.NewReader(make([]byte, 5000))}, function.TooLarge, "4096 bytes"},
		{"too large unpacked", Package{Zip: zipOf("bootstrap", strings.Repeat("x", 10000))}, function.TooLarge, "unpacked"},
		{"an image for a zip function", Package{ImageRef: "alpine"}, function.InvalidParameter, "of package type Zip"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.controller("a", func(c *Config) { c.Limits.PackageBytes, c.Limits.UnpackedBytes = 4096, 8192 })
				w.ready(c)
				_, err := c.CreateFunction(context.Background(), function.Function{Name: "f", Runtime: "provided"}, tt.pkg)
				contains(w.t, wantCode(w.t, err, tt.want).Message, tt.says)
				if n := len(w.packages(c)); n != 0 {
					w.t.Errorf("%d packages are left", n)
				}
				if list, _, _ := c.ListFunctions(context.Background(), "", 0); len(list) != 0 {
					w.t.Errorf("functions %v", list)
				}
			})
		})
	}
}

type fixedImages map[string]string

func (f fixedImages) Resolve(_ context.Context, ref string) (resolved, sha256 string, err error) {
	sum, ok := f[ref]
	if !ok {
		return "", "", function.Errorf(function.InvalidImage, "there is no image %s", ref)
	}
	return ref + "@sha256:" + sum, sum, nil
}

func TestImagesArePinnedWhenTheyAreDeployed(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a", func(c *Config) { c.Images = fixedImages{"alpine:3": "abc"} })
		w.ready(c)
		ctx := context.Background()
		f, err := c.CreateFunction(ctx, function.Function{Name: "f", PackageType: function.Image}, Package{ImageRef: "alpine:3"})
		if err != nil || f.Code.ResolvedRef != "alpine:3@sha256:abc" || f.Code.SHA256 != "abc" {
			t.Errorf("%+v, %v", f.Code, err)
		}
		_, err = c.CreateFunction(ctx, function.Function{Name: "g", PackageType: function.Image}, Package{ImageRef: "nothing"})
		wantCode(t, err, function.InvalidImage)
		_, err = c.Code(ctx, "f")
		wantCode(t, err, function.NotFound)
	})
}

func TestAsyncConfigurationIsPutAndTakenAway(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.controller("a")
		w.ready(c)
		made := w.create(c, "f")
		ctx := context.Background()
		_, err := c.GetAsyncConfig(ctx, "f")
		wantCode(t, err, function.NotFound)
		a, err := c.PutAsyncConfig(ctx, "f", function.AsyncConfig{MaxRetries: 1})
		if err != nil || a.MaxRetries != 1 || a.MaxAge != function.MaxAsyncAge || a.Modified.IsZero() {
			t.Errorf("%+v, %v", a, err)
		}
		_, err = c.PutAsyncConfig(ctx, "f", function.AsyncConfig{MaxRetries: 9})
		wantCode(t, err, function.InvalidParameter)
		if err := c.DeleteAsyncConfig(ctx, "f"); err != nil {
			t.Fatal(err)
		}
		f, err := c.GetFunction(ctx, "f")
		if err != nil || f.Async != DefaultAsync || f.Revision != made.Revision {
			t.Errorf("%+v, %v", f, err)
		}
	})
}

func TestTwoControllersChangeOneFunctionWithoutLosingAChange(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.controller("a")
		w.ready(a)
		b := w.controller("b")
		w.ready(b)
		w.create(a, "f")
		done := make(chan error)
		for _, c := range []*process{a, b} {
			go func() {
				for range 10 {
					if err := c.SetTags(context.Background(), "f", func(tags map[string]string) { tags["n"] += "x" }); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		f, err := a.GetFunction(context.Background(), "f")
		if err != nil || len(f.Tags["n"]) != 20 {
			t.Errorf("tags %v, %v", f.Tags, err)
		}
	})
}
