package natsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// logger passes the server's log to slog. What the server calls a notice is
// information for those who run a NATS server, and details for those who only
// run a platform on it.
type logger struct {
	slog *slog.Logger

	mu    sync.Mutex
	fatal error
}

func newLogger(log *slog.Logger) *logger {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &logger{slog: log}
}

// failure returns why the server gave up, if it did.
func (l *logger) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatal
}

func (l *logger) say(level slog.Level, format string, args []any) {
	if l.slog.Enabled(context.Background(), level) {
		l.slog.Log(context.Background(), level, strings.TrimSpace(fmt.Sprintf(format, args...)), "source", "nats-server")
	}
}

func (l *logger) Noticef(format string, args ...any) { l.say(slog.LevelDebug, format, args) }
func (l *logger) Errorf(format string, args ...any)  { l.say(slog.LevelError, format, args) }
func (l *logger) Debugf(format string, args ...any)  { l.say(slog.LevelDebug, format, args) }
func (l *logger) Tracef(format string, args ...any)  { l.say(slog.LevelDebug, format, args) }

func (l *logger) Warnf(format string, args ...any) {
	// A message of 8 MiB and its headers is meant.
	if strings.HasPrefix(format, "Maximum payloads over") {
		l.say(slog.LevelDebug, format, args)
		return
	}
	l.say(slog.LevelWarn, format, args)
}

// Fatalf notes why the server gives up; it does not end the process.
func (l *logger) Fatalf(format string, args ...any) {
	l.mu.Lock()
	if l.fatal == nil {
		l.fatal = errors.New(strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
	l.mu.Unlock()
	l.say(slog.LevelError, format, args)
}
