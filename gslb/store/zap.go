package store

import (
	"context"
	"log/slog"
	"runtime"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// chatter is what etcd warns of at every start of a single member.
var chatter = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
	"Failed to detect schema version":                                                      true,
	"failed to update storage version":                                                     true,
}

// quietZap returns a zap logger for etcd that hands warnings and worse to log, until muted,
// and drops the rest. Where etcd would end the process, or panic, onFatal is called with the
// reason and the goroutine ends: a broken store must not take DNS down with it.
func quietZap(log *slog.Logger, muted *atomic.Bool, onFatal func(string)) *zap.Logger {
	return zap.New(slogCore{LevelEnabler: zapcore.WarnLevel, log: log, muted: muted},
		zap.WithFatalHook(fatalHook(onFatal)), zap.WithPanicHook(fatalHook(onFatal)))
}

// fatalHook is a zapcore.CheckWriteHook.
type fatalHook func(string)

// OnWrite ends the goroutine that logged ce.
func (h fatalHook) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	msg := ce.Message
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			msg += ": " + err.Error()
		}
	}
	h(msg)
	runtime.Goexit()
}

// slogCore is a zapcore.Core over slog.
type slogCore struct {
	zapcore.LevelEnabler
	log    *slog.Logger
	muted  *atomic.Bool
	fields []zapcore.Field
}

// With returns a core that adds f to every entry.
func (c slogCore) With(f []zapcore.Field) zapcore.Core {
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], f...)
	return c
}

// Check adds c to ce when it will write e.
func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !c.muted.Load() && !chatter[e.Message] {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write logs one entry. etcd's errors become warnings: what this process makes of them is
// logged where it is decided.
func (c slogCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, x := range append(c.fields[:len(c.fields):len(c.fields)], f...) {
		x.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), slog.LevelWarn, "etcd: "+e.Message, attrs...)
	return nil
}

// Sync does nothing: slog does not buffer.
func (c slogCore) Sync() error { return nil }
