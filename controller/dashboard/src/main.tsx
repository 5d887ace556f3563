import { render } from "preact";
import { useState } from "preact/hooks";
import { Route, Switch } from "wouter-preact";
import { token } from "./api";
import { Frame } from "./parts/frame";
import { Audit } from "./pages/audit";
import { ClassPage, Classes } from "./pages/classes";
import { Decisions } from "./pages/decisions";
import { DevicePage, Devices } from "./pages/devices";
import { Jobs } from "./pages/jobs";
import { Login } from "./pages/login";
import { ModelPage, Models } from "./pages/models";
import { Overview } from "./pages/overview";
import { Rollouts } from "./pages/rollouts";
import "./style.css";

function App() {
  const [known, setKnown] = useState(token.get() !== null);
  if (!known) return <Login done={() => setKnown(true)} />;
  const leave = () => {
    token.clear();
    setKnown(false);
  };
  return (
    <Frame leave={leave}>
      <Switch>
        <Route path="/" component={Overview} />
        <Route path="/classes" component={Classes} />
        <Route path="/classes/:id">{({ id }) => <ClassPage id={id} />}</Route>
        <Route path="/devices" component={Devices} />
        <Route path="/devices/:id">{({ id }) => <DevicePage id={id} />}</Route>
        <Route path="/models" component={Models} />
        <Route path="/models/:name">{({ name }) => <ModelPage name={name} />}</Route>
        <Route path="/jobs" component={Jobs} />
        <Route path="/rollouts" component={Rollouts} />
        <Route path="/decisions" component={Decisions} />
        <Route path="/audit" component={Audit} />
        <Route>
          <h1>No such page</h1>
        </Route>
      </Switch>
    </Frame>
  );
}

render(<App />, document.getElementById("app")!);
