package volley_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

const module = "github.com/volley-run/volley"

// maxLines is how long a source file may be.
const maxLines = 800

// file is one file of the repository.
type file struct {
	path string // seen from the root, with forward slashes
	text []byte
}

// unit is the files of one folder that belong to one package; the external
// tests of a package are a unit of their own.
type unit struct {
	folder, name string
	files        []*ast.File
	paths        []string // of files
	fset         *token.FileSet
	info         types.Info
}

// A check looks at the repository and returns what is wrong with it, one
// complaint for each finding.
type check struct {
	name string
	run  func(files []file, units []*unit) []string
}

func checks() []check {
	return []check{
		{"every package has a package comment", checkPackageDocs},
		{"go.mod replaces nothing", checkNoReplace},
		{"no source file is too long", checkFileLength},
		{"no package has a name that says nothing", checkPackageNames},
		{"there is no init function", checkNoInit},
		{"packages hold no mutable state", checkNoState},
		{"packages keep to their layer", checkImports},
		{"no file names a registry or somebody's directory", checkNoPlaces},
		{"only internal/testenv skips tests", checkSkips},
	}
}

func TestRepository(t *testing.T) {
	files := repositoryFiles(t, testenv.RepoRoot(t))
	units, err := parseUnits(files)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			for _, complaint := range c.run(files, units) {
				t.Error(complaint)
			}
		})
	}
}

func TestEveryMustRunTestExists(t *testing.T) {
	entries, err := testenv.MustRun()
	if err != nil {
		t.Fatal(err)
	}
	units, err := parseUnits(repositoryFiles(t, testenv.RepoRoot(t)))
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	for _, u := range units {
		for i, f := range u.files {
			if !isTest(u.paths[i]) {
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
					exists[u.folder+" "+fn.Name.Name] = true
				}
			}
		}
	}
	for _, e := range entries {
		if !exists[e.Package+" "+e.Test] {
			t.Errorf("internal/testenv/mustrun.txt:%d: package %s has no test %s", e.Line, e.Package, e.Test)
		}
	}
}

// repositoryFiles reads the files that git tracks or would track, or every
// file outside the folders for built and fetched things where there is no git.
func repositoryFiles(t *testing.T, root string) []file {
	t.Helper()
	var paths []string
	git := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	git.Dir = root
	if out, err := git.Output(); err == nil {
		for p := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
			paths = append(paths, p)
		}
	} else {
		paths = walk(t, root)
	}
	slices.Sort(paths)
	var files []file
	for _, p := range slices.Compact(paths) {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(p)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, but not from the index yet
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{p, text})
	}
	if len(files) == 0 {
		t.Fatal("found no files")
	}
	return files
}

func walk(t *testing.T, root string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch filepath.ToSlash(rel) {
		case ".git", ".tools", "bin", "demo", "web/ui/dist", "web/ui/node_modules":
			if d.IsDir() {
				return filepath.SkipDir
			}
		}
		if d.Type().IsRegular() {
			paths = append(paths, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// parseUnits parses the Go files and finds out what each name in them refers
// to. It loads no imports, so it needs neither modules nor the go command, and
// types of other packages stay unknown.
func parseUnits(files []file) ([]*unit, error) {
	byKey := map[string]*unit{}
	var units []*unit
	fset := token.NewFileSet()
	for _, f := range files {
		if path.Ext(f.path) != ".go" || strings.Contains(f.path, "testdata/") {
			continue
		}
		parsed, err := parser.ParseFile(fset, f.path, f.text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", f.path, err)
		}
		key := path.Dir(f.path) + " " + parsed.Name.Name
		u := byKey[key]
		if u == nil {
			u = &unit{folder: path.Dir(f.path), name: parsed.Name.Name, fset: fset}
			u.info.Uses = map[*ast.Ident]types.Object{}
			u.info.Defs = map[*ast.Ident]types.Object{}
			byKey[key] = u
			units = append(units, u)
		}
		u.files = append(u.files, parsed)
		u.paths = append(u.paths, f.path)
	}
	for _, u := range units {
		conf := types.Config{Importer: noImports{}, Error: func(error) {}}
		// Errors are certain, since nothing is imported; names resolve all the same.
		_, _ = conf.Check(u.folder, fset, u.files, &u.info)
	}
	return units, nil
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, fs.ErrNotExist }

func (u *unit) at(n ast.Node) string { return u.fset.Position(n.Pos()).String() }

func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }

var generatedMark = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.\r?$`)

func checkPackageDocs(_ []file, units []*unit) []string {
	var complaints []string
	for _, u := range units {
		documented, code := false, false
		for i, f := range u.files {
			if isTest(u.paths[i]) || ast.IsGenerated(f) {
				continue
			}
			code = true
			if f.Doc != nil && (u.name == "main" || strings.HasPrefix(f.Doc.Text(), "Package "+u.name+" ")) {
				documented = true
			}
		}
		if code && !documented {
			complaints = append(complaints, fmt.Sprintf("%s: no file has a comment that begins \"Package %s\"", u.folder, u.name))
		}
	}
	return complaints
}

func checkNoReplace(files []file, _ []*unit) []string {
	var complaints []string
	for _, f := range files {
		if path.Base(f.path) != "go.mod" {
			continue
		}
		n := 0
		for line := range strings.Lines(string(f.text)) {
			n++
			if fields := strings.Fields(line); len(fields) > 0 && strings.TrimSuffix(fields[0], "(") == "replace" {
				complaints = append(complaints, fmt.Sprintf("%s:%d: %s", f.path, n, strings.TrimSpace(line)))
			}
		}
	}
	return complaints
}

func checkFileLength(files []file, _ []*unit) []string {
	var complaints []string
	for _, f := range files {
		switch path.Ext(f.path) {
		case ".go", ".ts", ".tsx", ".c", ".h":
		default:
			continue
		}
		if lines := bytes.Count(f.text, []byte("\n")); lines > maxLines && !generatedMark.Match(f.text) {
			complaints = append(complaints, fmt.Sprintf("%s: %d lines; split what is over %d", f.path, lines, maxLines))
		}
	}
	return complaints
}

func checkPackageNames(_ []file, units []*unit) []string {
	var complaints []string
	for _, u := range units {
		switch strings.TrimSuffix(u.name, "_test") {
		case "util", "utils", "common", "types", "helper", "helpers", "misc":
			complaints = append(complaints, fmt.Sprintf("%s: package %s: name it after what it provides", u.folder, u.name))
		}
	}
	return complaints
}

func checkNoInit(_ []file, units []*unit) []string {
	var complaints []string
	for _, u := range units {
		for _, f := range u.files {
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if ok && fn.Recv == nil && fn.Name.Name == "init" && !ast.IsGenerated(f) {
					complaints = append(complaints, u.at(fn)+": func init: let whoever needs it call it")
				}
			}
		}
	}
	return complaints
}

// checkNoState wants every package-level variable outside tests to be a
// constant in all but name; see constantValue. None may be assigned to.
func checkNoState(_ []file, units []*unit) []string {
	var complaints []string
	for _, u := range units {
		variables := map[token.Pos]bool{}
		for i, f := range u.files {
			if isTest(u.paths[i]) || ast.IsGenerated(f) {
				continue
			}
			for _, d := range f.Decls {
				decl, ok := d.(*ast.GenDecl)
				if !ok || decl.Tok != token.VAR {
					continue
				}
				for _, s := range decl.Specs {
					spec := s.(*ast.ValueSpec)
					for j, name := range spec.Names {
						variables[name.Pos()] = true
						if !constantValue(decl, spec, j) {
							complaints = append(complaints, fmt.Sprintf(
								"%s: package variable %s: make it a field or an argument, or say in its comment that it is constant", u.at(name), name.Name))
						}
					}
				}
			}
		}
		for i, f := range u.files {
			if isTest(u.paths[i]) || ast.IsGenerated(f) {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				for _, target := range targets(n) {
					id := base(target)
					if id == nil {
						continue
					}
					if obj := u.info.Uses[id]; obj != nil && variables[obj.Pos()] {
						complaints = append(complaints, fmt.Sprintf("%s: package variable %s is changed here", u.at(id), id.Name))
					}
				}
				return true
			})
		}
	}
	return complaints
}

// targets returns the expressions that n assigns to, counts up or down, or
// deletes from.
func targets(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			return n.Lhs
		}
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.RangeStmt:
		if n.Tok == token.ASSIGN {
			return []ast.Expr{n.Key, n.Value}
		}
	case *ast.CallExpr:
		if id, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && (id.Name == "delete" || id.Name == "clear") {
			return n.Args[:1]
		}
	}
	return nil
}

// base returns the variable that an expression is a part of: v for v[i].f.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// constantValue reports whether the i-th variable of a declaration is one of:
// an interface assertion (var _ I = T{}), a sentinel error, an embedded file,
// the result of a constructor of immutable values, a table with a comment, or
// anything at all with a comment that calls it constant or set by the linker.
func constantValue(decl *ast.GenDecl, spec *ast.ValueSpec, i int) bool {
	name := spec.Names[i].Name
	if name == "_" {
		return true
	}
	var comments []*ast.Comment
	doc := ""
	for _, g := range []*ast.CommentGroup{decl.Doc, spec.Doc, spec.Comment} {
		if g != nil {
			comments = append(comments, g.List...)
			doc += g.Text()
		}
	}
	for _, c := range comments {
		if strings.HasPrefix(c.Text, "//go:embed ") {
			return true
		}
	}
	if regexp.MustCompile(`(?i)\b(constant|linker)\b`).MatchString(doc) {
		return true
	}
	if i >= len(spec.Values) {
		return false
	}
	value := spec.Values[i]
	if and, ok := value.(*ast.UnaryExpr); ok && and.Op == token.AND {
		value = and.X
	}
	switch v := value.(type) {
	case *ast.CallExpr:
		switch types.ExprString(v.Fun) {
		case "errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "template.Must",
			"netip.MustParseAddr", "netip.MustParsePrefix", "sync.OnceValue", "sync.OnceValues":
			return true
		}
		return strings.HasPrefix(name, "Err")
	case *ast.CompositeLit:
		kind := types.ExprString(v.Type)
		return strings.HasPrefix(name, "Err") ||
			doc != "" && !strings.HasPrefix(kind, "sync.") && !strings.HasPrefix(kind, "atomic.")
	}
	return false
}

// checkImports is who may import whom; .golangci.yml says the same.
func checkImports(_ []file, units []*unit) []string {
	systems := []string{"sprocket", "particle", "sophon", "faasnap"}
	kernel := []string{"internal/sys", "particle/rtnl", "particle/bpf", "particle/seccomp", "faasnap/mem"}
	in := func(folder string, tops ...string) bool {
		return slices.ContainsFunc(tops, func(top string) bool {
			return folder == top || strings.HasPrefix(folder, top+"/")
		})
	}
	var complaints []string
	for _, u := range units {
		for _, f := range u.files {
			for _, spec := range f.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					continue // the parser has checked it
				}
				complain := func(rule string) {
					complaints = append(complaints, fmt.Sprintf("%s: %s imports %s: %s", u.at(spec), u.folder, imported, rule))
				}
				if in(imported, "golang.org/x/sys") && !in(u.folder, kernel...) {
					complain("raw system calls belong in " + strings.Join(kernel, ", "))
				}
				imported, ours := strings.CutPrefix(imported, module+"/")
				if !ours {
					if in(u.folder, "function") && strings.Contains(strings.Split(imported, "/")[0], ".") && !isTest(u.fset.Position(spec.Pos()).Filename) {
						complain("function uses the standard library only")
					}
					continue
				}
				if in(u.folder, "function", "internal") && in(imported, append(systems, "sandbox", "store")...) {
					complain("function and internal import no system")
				}
				for _, s := range systems {
					if in(u.folder, s) && in(imported, systems...) && !in(imported, s) {
						complain("the systems do not import each other")
					}
				}
				if in(imported, "gateway") && !in(u.folder, "cmd", "gateway") {
					complain("only cmd imports gateway")
				}
				if in(imported, "cmd") && !in(u.folder, "cmd") {
					complain("nothing imports cmd")
				}
			}
		}
	}
	return complaints
}

// checkNoPlaces keeps out what is true of one machine only.
func checkNoPlaces(files []file, _ []*unit) []string {
	// The patterns are written so that they do not match themselves.
	hosts := regexp.MustCompile(`(?i)\b(proxy\.golang|sum\.golang|registry\.npmjs|registry\.yarnpkg|(deb|security|ftp)\.debian|` +
		`(files\.)?pythonhosted|pypi|(static\.|index\.)?crates|repo1?\.maven)\.(org|io|com)\b`)
	paths := regexp.MustCompile("(?m)(^|[\\s\"'`=(:,<\\[])" + `/(work|root|home)(/|["'\x60\s):,>\]]|$)`)
	var complaints []string
	for _, f := range files {
		if bytes.IndexByte(f.text, 0) >= 0 {
			continue // not text
		}
		n := 0
		for line := range bytes.Lines(f.text) {
			n++
			if host := hosts.Find(line); host != nil {
				complaints = append(complaints, fmt.Sprintf("%s:%d: names the registry host %s", f.path, n, host))
			}
			if p := paths.Find(line); p != nil {
				complaints = append(complaints, fmt.Sprintf("%s:%d: holds the absolute path %q", f.path, n, bytes.TrimSpace(line)))
			}
		}
	}
	return complaints
}

// checkSkips looks for calls of Skip, Skipf and SkipNow on a parameter that is
// a *testing.T, B or F or a testing.TB. Methods of that name on other things,
// such as rapid's T, are not meant.
func checkSkips(_ []file, units []*unit) []string {
	var complaints []string
	for _, u := range units {
		if u.folder == "internal/testenv" {
			continue
		}
		tests := map[token.Pos]bool{}
		for _, f := range u.files {
			ast.Inspect(f, func(n ast.Node) bool {
				if p, ok := n.(*ast.Field); ok {
					switch types.ExprString(p.Type) {
					case "*testing.T", "*testing.B", "*testing.F", "testing.TB":
						for _, name := range p.Names {
							tests[name.Pos()] = true
						}
					}
				}
				return true
			})
		}
		for _, f := range u.files {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				id, ok := sel.X.(*ast.Ident)
				if !ok {
					return true
				}
				switch sel.Sel.Name {
				case "Skip", "Skipf", "SkipNow":
					if obj := u.info.Uses[id]; obj != nil && tests[obj.Pos()] {
						complaints = append(complaints, u.at(call)+": skips the test: ask testenv.Need for what it needs")
					}
				}
				return true
			})
		}
	}
	return complaints
}

// TestChecksFindWhatTheyLookFor gives every check something wrong, and
// something that looks alike but is right.
func TestChecksFindWhatTheyLookFor(t *testing.T) {
	imports := func(folder, imported string) file {
		return file{folder + "/x.go", []byte("package x\nimport _ \"" + imported + "\"\n")}
	}
	own := func(p string) string { return module + "/" + p }
	source := func(text string) file { return file{"store/x.go", []byte("package x\n" + text)} }
	test := func(text string) file { return file{"store/x_test.go", []byte("package x_test\n" + text)} }
	for _, tc := range []struct {
		check string
		name  string
		file  file
		wrong bool
	}{
		{"every package has a package comment", "none", source(""), true},
		{"every package has a package comment", "of the wrong form", file{"a/a.go", []byte("// Some code.\npackage a\n")}, true},
		{"every package has a package comment", "one", file{"a/a.go", []byte("// Package a is one.\npackage a\n")}, false},
		{"every package has a package comment", "only tests", test(""), false},

		{"go.mod replaces nothing", "a line", file{"go.mod", []byte("module m\nreplace a => b v1.0.0\n")}, true},
		{"go.mod replaces nothing", "a block", file{"go.mod", []byte("module m\nreplace (\n)\n")}, true},
		{"go.mod replaces nothing", "none", file{"go.mod", []byte("module m\n// replace nothing\n")}, false},

		{"no source file is too long", "Go", source(strings.Repeat("\n", maxLines)), true},
		{"no source file is too long", "TypeScript", file{"a.ts", []byte(strings.Repeat("\n", maxLines+1))}, true},
		{"no source file is too long", "just short enough", source(strings.Repeat("\n", maxLines-1)), false},
		{"no source file is too long", "generated", source("// Code generated by x. DO NOT EDIT.\n" + strings.Repeat("\n", maxLines)), false},

		{"no package has a name that says nothing", "util", file{"a/a.go", []byte("package util\n")}, true},
		{"no package has a name that says nothing", "store", file{"a/a.go", []byte("package store\n")}, false},

		{"there is no init function", "a function", source("func init() {}\n"), true},
		{"there is no init function", "a method", source("type T int\nfunc (T) init() {}\n"), false},

		{"packages hold no mutable state", "a counter", source("var n int\n"), true},
		{"packages hold no mutable state", "a lock", source("// mu guards.\nvar mu = sync.Mutex{}\n"), true},
		{"packages hold no mutable state", "a registry", source("// m is a registry.\nvar m = make(map[string]int)\n"), true},
		{"packages hold no mutable state", "a seam for tests", source("var now = time.Now\n"), true},
		{"packages hold no mutable state", "a table without a comment", source("var m = map[string]int{}\n"), true},
		{"packages hold no mutable state", "a table that is written to", source("// m is a table.\nvar m = map[string]int{}\nfunc f() { m[\"a\"] = 1 }\n"), true},
		{"packages hold no mutable state", "a table that is deleted from", source("// m is a table.\nvar m = map[string]int{}\nfunc f() { delete(m, \"a\") }\n"), true},
		{"packages hold no mutable state", "a table that is only read", source("// m is a table.\nvar m = map[string]int{}\nfunc f() int { m := 1; m = 2; return m }\n"), false},
		{"packages hold no mutable state", "a sentinel error", source("var ErrGone = errors.New(\"gone\")\n"), false},
		{"packages hold no mutable state", "an interface assertion", source("var _ error = T{}\ntype T struct{}\n"), false},
		{"packages hold no mutable state", "an embedded file", source("//go:embed a.txt\nvar a string\n"), false},
		{"packages hold no mutable state", "a compiled expression", source("var re = regexp.MustCompile(`a`)\n"), false},
		{"packages hold no mutable state", "a documented constant", source("// half is constant.\nvar half = big.NewRat(1, 2)\n"), false},
		{"packages hold no mutable state", "a flag of a test", test("var update = flag.Bool(\"update\", false, \"\")\n"), false},

		{"packages keep to their layer", "one system in another", imports("sprocket/job", own("particle/rtnl")), true},
		{"packages keep to their layer", "a system in internal", imports("internal/plot", own("sophon")), true},
		{"packages keep to their layer", "the store in function", imports("function", own("store")), true},
		{"packages keep to their layer", "a module in function", imports("function", "github.com/a/b"), true},
		{"packages keep to their layer", "gateway in the store", imports("store", own("gateway/player")), true},
		{"packages keep to their layer", "a command in gateway", imports("gateway", own("cmd/volley")), true},
		{"packages keep to their layer", "raw system calls in the store", imports("store", "golang.org/x/sys/unix"), true},
		{"packages keep to their layer", "raw system calls in internal/sys", imports("internal/sys", "golang.org/x/sys/unix"), false},
		{"packages keep to their layer", "a system in itself", imports("sprocket/job", own("sprocket/media")), false},
		{"packages keep to their layer", "the store in a system", imports("sprocket/job", own("store")), false},
		{"packages keep to their layer", "gateway in cmd", imports("cmd/volley", own("gateway")), false},
		{"packages keep to their layer", "a name that only begins alike", imports("particle", own("sprockets")), false},

		{"no file names a registry or somebody's directory", "a module proxy", file{"a.md", []byte("GOPROXY=https://" + "proxy." + "golang.org\n")}, true},
		{"no file names a registry or somebody's directory", "an npm registry", file{"a.json", []byte("https://" + "registry." + "npmjs.org/x.tgz\n")}, true},
		{"no file names a registry or somebody's directory", "a home", file{"a.sh", []byte("cd " + "/ho" + "me/me\n")}, true},
		{"no file names a registry or somebody's directory", "root's home", file{"a.txt", []byte("\"" + "/ro" + "ot\"\n")}, true},
		{"no file names a registry or somebody's directory", "a URL that ends alike", file{"a.md", []byte("https://example.com/home/x and a/work/b\n")}, false},

		{"only internal/testenv skips tests", "in a test", test("func TestA(t *testing.T) { t.Skip(1) }\n"), true},
		{"only internal/testenv skips tests", "in a subtest", test("func TestA(t *testing.T) { t.Run(\"\", func(tt *testing.T) { tt.SkipNow() }) }\n"), true},
		{"only internal/testenv skips tests", "in a helper", source("func need(tb testing.TB) { tb.Skipf(\"\") }\n"), true},
		{"only internal/testenv skips tests", "of rapid", test("func TestA(t *testing.T) { rapid.Check(t, func(t *rapid.T) { t.Skip() }) }\n"), false},
		{"only internal/testenv skips tests", "in testenv", file{"internal/testenv/a.go", []byte("package testenv\nfunc need(tb testing.TB) { tb.Skip() }\n")}, false},
	} {
		t.Run(tc.check+": "+tc.name, func(t *testing.T) {
			i := slices.IndexFunc(checks(), func(c check) bool { return c.name == tc.check })
			files := []file{tc.file}
			units, err := parseUnits(files)
			if err != nil {
				t.Fatal(err)
			}
			if found := checks()[i].run(files, units); (len(found) > 0) != tc.wrong {
				t.Errorf("complaints %q; want any: %v", found, tc.wrong)
			}
		})
	}
}
