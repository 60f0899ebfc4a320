package app

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/cmd/gfe/serve"
)

// Counter is a counter of the database.
type Counter struct {
	Name     string   `json:"name"`
	Value    uint64   `json:"value"`
	Database Instance `json:"database"`
}

// Database keeps counters in a bbolt file and serves them over HTTP:
//
//	GET  /counters/{name}   reads one; 0 for one that never was
//	POST /counters/{name}   adds one to it and returns the new value
//
// Every write is on disk (fsync) before it is answered. Make it with NewDatabase, then
// Listen, then Run.
type Database struct {
	// Set at construction.
	*serve.Server
	self Instance
	path string

	db *bbolt.DB // set by Listen, closed at the end of Run
}

var counters = []byte("counters") // the bucket

// counterName is what a counter may be called.
var counterName = regexp.MustCompile(`^[a-z0-9._-]{1,64}$`)

// NewDatabase returns a database of that file, which Listen opens.
func NewDatabase(c Config, path string) (*Database, error) {
	if path == "" {
		return nil, errors.New("database: no path of its file")
	}
	d := &Database{path: path}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /counters/{name}", d.answer(d.read))
	mux.HandleFunc("POST /counters/{name}", d.answer(d.increment))
	var err error
	d.Server, err = c.server("database", mux, func(context.Context) error {
		_, err := d.read("health")
		return err
	})
	d.self = Instance{c.Name, c.Site}
	return d, err
}

// Listen opens the file, which it makes with its folder if need be, and binds the addresses.
// A file that another process has open is an error after a second.
func (d *Database) Listen() error {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o750); err != nil {
		return fmt.Errorf("database %s: %w", d.path, err)
	}
	db, err := bbolt.Open(d.path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("database %s: open: %w", d.path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(counters)
		return err
	})
	if err != nil {
		err = fmt.Errorf("database %s: %w", d.path, err)
	} else {
		err = d.Server.Listen()
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	d.db = db
	return nil
}

// Run serves until ctx ends, drains, and closes the file.
func (d *Database) Run(ctx context.Context) error {
	err := d.Server.Run(ctx)
	return errors.Join(err, d.closeFile())
}

// Close gives up what Listen took when Run will not follow.
func (d *Database) Close() {
	d.Server.Close()
	d.closeFile() // nothing was written
}

func (d *Database) closeFile() error {
	if d.db == nil {
		return nil
	}
	return d.db.Close()
}

// answer serves one operation on a counter.
func (d *Database) answer(do func(name string) (uint64, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if !counterName.MatchString(name) {
			reply(w, http.StatusBadRequest, problem{fmt.Sprintf("counter %q: expected 1 to 64 of a-z, 0-9, dot, dash and underscore", name)})
			return
		}
		value, err := do(name)
		if err != nil {
			span := trace.SpanFromContext(r.Context())
			span.RecordError(err)
			span.SetStatus(codes.Error, err.Error())
			reply(w, http.StatusInternalServerError, problem{fmt.Sprintf("counter %s: %v", name, err)})
			return
		}
		reply(w, http.StatusOK, Counter{name, value, d.self})
	}
}

func (d *Database) read(name string) (value uint64, err error) {
	err = d.db.View(func(tx *bbolt.Tx) error {
		value, err = decode(tx.Bucket(counters).Get([]byte(name)))
		return err
	})
	return value, err
}

func (d *Database) increment(name string) (value uint64, err error) {
	err = d.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(counters)
		value, err = decode(b.Get([]byte(name)))
		if err != nil {
			return err
		}
		value++
		return b.Put([]byte(name), binary.BigEndian.AppendUint64(nil, value))
	})
	return value, err
}

// decode reads a counter's value: 8 octets, big endian, or nothing.
func decode(b []byte) (uint64, error) {
	switch len(b) {
	case 0:
		return 0, nil
	case 8:
		return binary.BigEndian.Uint64(b), nil
	}
	return 0, fmt.Errorf("value of %d octets: expected 8", len(b))
}
